"""What a hot key does to the other tenants."""

from __future__ import annotations

import pytest

from benchmarks.recording import Outcome, Recording
from benchmarks.suite import Slo
from benchmarks.tenancy import fairness, tenant_of

MS = 1_000_000


def _recording(*parts: tuple[int, int, float, Outcome]) -> Recording:
    """``parts`` are (tenant, requests, milliseconds, outcome)."""
    recording = Recording()
    for tenant, count, milliseconds, outcome in parts:
        for number in range(count):
            at = number * MS
            recording.add(at, at, at + int(milliseconds * MS), outcome, 200, tenant=tenant)
    return recording


def test_a_tenants_part_is_its_own() -> None:
    recording = _recording((0, 100, 300, Outcome.OK), (1, 50, 5, Outcome.OK), (1, 10, 1, Outcome.SHED))
    found = tenant_of(recording, 1, 2.0, Slo(100.0))
    assert (found.requests_per_s, found.goodput, found.shed, found.faults) == (30.0, 25.0, 10, 0)
    assert found.latency.max == pytest.approx(5, rel=0.01)
    assert tenant_of(recording, 0, 2.0, Slo(100.0)).goodput == 0


@pytest.mark.parametrize(
    ("beside_ms", "refused", "isolated"),
    [(5.0, 0, True), (90.0, 0, True), (150.0, 0, False), (5.0, 100, False)],
)
def test_the_others_are_judged_by_their_tail_and_by_what_is_answered(
    beside_ms: float, refused: int, isolated: bool
) -> None:
    alone = _recording((1, 500, 5, Outcome.OK))
    beside = _recording((0, 900, 800, Outcome.OK), (1, 500, beside_ms, Outcome.OK), (1, refused, 1, Outcome.SHED))
    found = fairness(alone, beside, Slo(100.0))
    assert found.percentile == "p99"
    assert found.isolated is isolated
    assert ("NOT isolated" in str(found)) is not isolated


def test_a_tail_that_is_long_anyway_may_be_twice_as_long() -> None:
    alone, beside = _recording((1, 500, 200, Outcome.OK)), _recording((1, 500, 350, Outcome.OK))
    assert fairness(alone, beside, Slo(100.0)).isolated


def test_too_few_requests_are_no_verdict() -> None:
    few = _recording((1, 20, 5, Outcome.OK))
    assert not fairness(few, few, Slo(100.0)).isolated
    assert "too few" in str(fairness(few, few, Slo(100.0)))
