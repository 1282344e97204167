"""What Prometheus is told, read by its own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import Metrics
from gateway.types import Call, Units


def call(model: str = "digits", **stages: int) -> Call:
    made = Call("u", "r", "kserve_http", "infer")
    made.model, made.stages, made.units = model, dict(stages), Units(tokens=7, pixels=784)
    return made


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_histograms_are_cumulative_and_their_bounds_inclusive() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.0011, 100.0):
        metrics.finished(call(), 200, seconds)
    found = samples(metrics)
    labels = (("dialect", "kserve_http"), ("model", "digits"))
    name = "tidegate_request_duration_seconds"

    def bucket(bound: str) -> float:
        return found[f"{name}_bucket", tuple(sorted((*labels, ("le", bound))))]

    assert [bucket(bound) for bound in ("0.001", "0.0025", "30.0", "+Inf")] == [2, 3, 3, 4]
    assert found[f"{name}_count", labels] == 4
    assert found[f"{name}_sum", labels] == pytest.approx(100.0026)


def test_calls_are_counted_by_model_dialect_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 429):
        metrics.finished(call(auth=2_000_000), status, 0.01)
    found = samples(metrics)
    labels = (("dialect", "kserve_http"), ("model", "digits"))
    assert found["tidegate_requests_total", (("code", "200"), *labels)] == 2
    assert found["tidegate_requests_total", (("code", "429"), *labels)] == 1
    assert found["tidegate_tokens_total", (("model", "digits"),)] == 14  # of answered ones
    assert found["tidegate_pixels_total", (("model", "digits"),)] == 2 * 784
    assert found["tidegate_stage_duration_seconds_sum", (("stage", "auth"),)] == pytest.approx(0.006)


def test_what_is_in_flight_goes_up_and_down() -> None:
    metrics = Metrics()
    metrics.entered("digits")
    metrics.entered("digits")
    metrics.left("digits")
    metrics.batch("digits", 3, 16)
    found = samples(metrics)
    assert found["tidegate_inflight", (("model", "digits"),)] == 1
    assert found["tidegate_coalesced_batch_size_bucket", (("le", "16.0"), ("model", "digits"))] == 1
    assert found["tidegate_coalesced_batch_size_bucket", (("le", "8.0"), ("model", "digits"))] == 0
