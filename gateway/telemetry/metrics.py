"""Prometheus metrics. Label sets are bounded: models that are served, dialects, status codes; never a
key or a user.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as ExportedSample

from gateway.types import Call

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Sample = tuple[Mapping[str, str], float]


class _Tally:
    """A histogram of one label set. A plain one: prometheus-client's takes two locks for every observation."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations by bucket, not cumulative; the last is beyond all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and cumulative counts, as the exposition has them."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class _Tallies(dict[tuple[str, ...], _Tally]):
    """A histogram's label sets, made when first asked for; collected as one metric family."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__()
        self._name, self._documentation, self._labels, self._bounds = name, documentation, labels, bounds

    def __missing__(self, key: tuple[str, ...]) -> _Tally:
        tally = self[key] = _Tally(self._bounds)
        return tally

    def family(self) -> HistogramMetricFamily:
        """What a scrape gets."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for key, tally in self.items():
            family.add_metric(key, tally.buckets(), tally.total)
        return family


class _Counts(dict[tuple[str, ...], int]):
    """A counter's or a gauge's label sets; collected as one metric family."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], *, gauge: bool = False) -> None:
        super().__init__()
        self._name, self._documentation, self._labels = name, documentation, labels
        self._kind = GaugeMetricFamily if gauge else CounterMetricFamily

    def __missing__(self, key: tuple[str, ...]) -> int:
        return 0

    def family(self) -> Metric:
        """What a scrape gets."""
        family = self._kind(self._name, self._documentation, labels=self._labels)
        for key, value in self.items():
            family.add_metric(key, value)
        return family


class Metrics(Collector):
    """The gateway's metrics on a registry of its own; ``render`` is what ``/metrics`` answers.

    Everything is counted and rendered on the event loop, so nothing takes a lock.
    """

    def __init__(self) -> None:
        self.on_finished: Callable[[Call, int, float], None] | None = None
        """Whoever else wants to know of every call that ended: tracing."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = _Counts("tidegate_requests", "Requests answered.", ("model", "dialect", "code"))
        self._duration = _Tallies(
            "tidegate_request_duration_seconds",
            "From the first byte of the request to the answer's.",
            ("model", "dialect"),
            _LATENCY_BUCKETS,
        )
        self._stage = _Tallies(
            "tidegate_stage_duration_seconds", "Time spent in one stage of the way through.", ("stage",), _STAGE_BUCKETS
        )
        self._inflight = _Counts("tidegate_inflight", "Requests between admission and answer.", ("model",), gauge=True)
        self._batch = _Tallies(
            "tidegate_coalesced_batch_size", "Rows of one request to Triton.", ("model",), _BATCH_BUCKETS
        )
        self._tokens = _Counts("tidegate_tokens", "Tokens of answered requests.", ("model",))
        self._pixels = _Counts("tidegate_pixels", "Pixels of answered requests.", ("model",))
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What a scrape gets of the metrics above."""
        families: list[_Counts | _Tallies] = [
            self._requests, self._duration, self._stage, self._inflight, self._batch, self._tokens, self._pixels,
        ]  # fmt: skip
        return [family.family() for family in families]

    def finished(self, call: Call, code: int, duration_s: float) -> None:
        """Count one request that was answered, or given up by its client (499)."""
        if self.on_finished is not None:
            self.on_finished(call, code, duration_s)
        model, dialect = call.model, call.dialect
        self._requests[model, dialect, str(code)] += 1
        self._duration[model, dialect].observe(duration_s)
        stages = self._stage
        for stage, nanoseconds in call.stages.items():
            stages[stage,].observe(nanoseconds / 1e9)
        if code == 200:
            units = call.units
            if units.tokens:
                self._tokens[model,] += units.tokens
            if units.pixels:
                self._pixels[model,] += units.pixels

    def batch(self, model: str, _requests: int, rows: int) -> None:
        """Count one request to Triton."""
        self._batch[model,].observe(rows)

    def entered(self, model: str) -> None:
        """A request of ``model`` was admitted."""
        self._inflight[model,] += 1

    def left(self, model: str) -> None:
        """A request of ``model`` was answered or given up."""
        self._inflight[model,] -= 1

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
