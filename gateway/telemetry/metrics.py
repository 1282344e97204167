"""Prometheus metrics. Label sets are bounded: models that are served, dialects, status codes; never a
key or a user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as ExportedSample

from gateway.types import Call

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Sample = tuple[Mapping[str, str], float]


class Metrics:
    """The gateway's metrics on a registry of its own; ``render`` is what ``/metrics`` answers."""

    def __init__(self) -> None:
        self.on_finished: Callable[[Call, int, float], None] | None = None
        """Whoever else wants to know of every call that ended: tracing."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "tidegate_requests_total", "Requests answered.", ("model", "dialect", "code"), registry=self.registry
        )
        self._duration = Histogram(
            "tidegate_request_duration_seconds",
            "From the first byte of the request to the answer's.",
            ("model", "dialect"),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._stage = Histogram(
            "tidegate_stage_duration_seconds",
            "Time spent in one stage of the way through.",
            ("stage",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._inflight = Gauge(
            "tidegate_inflight", "Requests between admission and answer.", ("model",), registry=self.registry
        )
        self._batch = Histogram(
            "tidegate_coalesced_batch_size",
            "Rows of one request to Triton.",
            ("model",),
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "tidegate_tokens_total", "Tokens of answered requests.", ("model",), registry=self.registry
        )
        self._pixels = Counter(
            "tidegate_pixels_total", "Pixels of answered requests.", ("model",), registry=self.registry
        )
        # Children are looked up once: prometheus-client's labels() takes a lock and builds tuples.
        self._known: dict[tuple[str, str, str], Counter] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._stages: dict[str, Histogram] = {}
        self._batches: dict[str, Histogram] = {}

    def finished(self, call: Call, code: int, duration_s: float) -> None:
        """Count one request that was answered, or given up by its client (499)."""
        if self.on_finished is not None:
            self.on_finished(call, code, duration_s)
        key = (call.model, call.dialect, str(code))
        counter = self._known.get(key)
        if counter is None:
            counter = self._known[key] = self._requests.labels(*key)
        counter.inc()
        pair = (call.model, call.dialect)
        histogram = self._durations.get(pair)
        if histogram is None:
            histogram = self._durations[pair] = self._duration.labels(*pair)
        histogram.observe(duration_s)
        for stage, nanoseconds in call.stages.items():
            child = self._stages.get(stage)
            if child is None:
                child = self._stages[stage] = self._stage.labels(stage)
            child.observe(nanoseconds / 1e9)
        if code == 200 and call.units.tokens:
            self._tokens.labels(call.model).inc(call.units.tokens)
        if code == 200 and call.units.pixels:
            self._pixels.labels(call.model).inc(call.units.pixels)

    def batch(self, model: str, _requests: int, rows: int) -> None:
        """Count one request to Triton."""
        child = self._batches.get(model)
        if child is None:
            child = self._batches[model] = self._batch.labels(model)
        child.observe(rows)

    def entered(self, model: str) -> None:
        """A request of ``model`` was admitted."""
        self._inflight.labels(model).inc()

    def left(self, model: str) -> None:
        """A request of ``model`` was answered or given up."""
        self._inflight.labels(model).dec()

    def watch(
        self, name: str, documentation: str, samples: Callable[[], Iterable[Sample]], *, counter: bool = False
    ) -> None:
        """Export numbers that other parts keep: ``samples`` is asked at every scrape."""
        self.registry.register(_Watched(name, documentation, samples, counter))

    def render(self) -> bytes:
        """The exposition, as Prometheus scrapes it."""
        return generate_latest(self.registry)


class _Watched(Collector):
    def __init__(self, name: str, documentation: str, samples: Callable[[], Iterable[Sample]], counter: bool) -> None:
        self._name, self._documentation, self._samples, self._counter = name, documentation, samples, counter

    def collect(self) -> Iterable[Metric]:
        family = (CounterMetricFamily if self._counter else GaugeMetricFamily)(self._name, self._documentation)
        for labels, value in self._samples():
            family.samples.append(ExportedSample(self._name, dict(labels), value))
        yield family

    def describe(self) -> Iterable[Metric]:
        return ()
