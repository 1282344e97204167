"""What happened to every request: raw samples, HdrHistograms, and the percentiles that may be printed."""

from __future__ import annotations

import gzip
import math
from array import array
from collections import Counter
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

HIGHEST_US = 3_600_000_000
DIGITS = 3
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
UNSURE = 0.01
"""Chance that a percentile lies above what is claimed of it."""
MAX_FAULTS = 0.01
"""Share of requests that may be refused, failed or wrong within an objective that is met."""


class Outcome(IntEnum):
    """How a request ended."""

    OK = 0
    WRONG = 1
    """A 2xx whose answer is not right."""
    SHED = 2
    """429 or 503: refused on purpose."""
    ERROR = 3
    TIMEOUT = 4
    CANCELLED = 5
    """By the load generator, as the scenario asks."""


COLUMNS = ("intended", "sent", "done", "outcome", "status", "bytes_in", "bytes_out", "tenant")
"""Of a :class:`Recording`."""


def sample_floor(percentile: float) -> int:
    """Samples needed before ``percentile`` may be printed: with that many, one lies above it with 99 %
    confidence (459 for p99, 4,603 for p99.9).
    """
    return math.ceil(math.log(UNSURE) / math.log(percentile / 100))


@lru_cache(maxsize=4096)
def most_over(samples: int, percentile: float) -> int:
    """How many of ``samples`` may lie above a bound so that ``percentile`` is within it with 99 % confidence
    (MLPerf's early stopping: 0 of 459 and 77 of 10,000 for p99); -1 below the sample floor.
    """
    if samples < sample_floor(percentile):
        return -1
    inside = percentile / 100
    counts = np.arange(int(samples * (1 - inside)) + 1, dtype=np.float64)
    steps = np.log(samples - counts[:-1]) - np.log(counts[1:]) + math.log((1 - inside) / inside)
    logarithms = samples * math.log(inside) + np.concatenate(([0.0], np.cumsum(steps)))
    return int(np.searchsorted(np.cumsum(np.exp(logarithms)), UNSURE, side="right")) - 1


def new_histogram() -> HdrHistogram:
    """1 µs to 1 hour with three significant digits."""
    return HdrHistogram(1, HIGHEST_US, DIGITS)


def percentiles(histogram: HdrHistogram) -> dict[str, float | None]:
    """Milliseconds by name (``p50``, ``p99.9``, …); None below the sample floor."""
    count = histogram.get_total_count()
    return {
        f"p{percentile:g}": histogram.get_value_at_percentile(percentile) / 1000
        if count >= sample_floor(percentile)
        else None
        for percentile in PERCENTILES
    }


def bounds(histogram: HdrHistogram) -> dict[str, float | None]:
    """Milliseconds that a percentile lies within with 99 % confidence, by name; None where samples do not suffice."""
    count = histogram.get_total_count()
    found = {f"p{percentile:g}": most_over(count, percentile) for percentile in PERCENTILES}
    return {
        name: histogram.get_value_at_percentile(100 * (count - over) / count) / 1000 if over >= 0 else None
        for name, over in found.items()
    }


@lru_cache(maxsize=1)
def _middles() -> npt.NDArray[np.int64]:
    """What each count of :func:`new_histogram` stands for, in microseconds: the middle of the values that it holds."""
    layout = new_histogram()
    index = np.arange(layout.counts_len)
    half = layout.sub_bucket_half_count
    bucket = np.maximum((index >> layout.sub_bucket_half_count_magnitude) - 1, 0)
    lowest = np.where(index < half, index, (index & (half - 1)) + half) << bucket
    middles: npt.NDArray[np.int64] = lowest + ((1 << bucket) >> 1)
    return middles


def _moments(histogram: HdrHistogram) -> tuple[float, float]:
    """Mean and standard deviation, microseconds: HdrHistogram's own, without a loop over its counts in Python."""
    counts = np.ctypeslib.as_array(histogram.counts)
    filled = np.flatnonzero(counts)
    weights, middles = counts[filled].astype(np.float64), _middles()[filled]
    mean = float(np.average(middles, weights=weights))
    return mean, math.sqrt(np.average((middles - mean) ** 2, weights=weights))


class Latency(msgspec.Struct, frozen=True):
    """A distribution in milliseconds."""

    samples: int
    min: float | None
    mean: float | None
    std: float | None
    max: float | None
    percentiles: dict[str, float | None]
    bounds: dict[str, float | None] = {}
    """What each percentile lies within with 99 % confidence."""

    @classmethod
    def of(cls, histogram: HdrHistogram) -> Latency:
        """Of a histogram in microseconds."""
        count = histogram.get_total_count()
        if not count:
            return cls(0, None, None, None, None, percentiles(histogram))
        mean, std = _moments(histogram)
        return cls(
            samples=count,
            min=histogram.get_min_value() / 1000,
            mean=mean / 1000,
            std=std / 1000,
            max=histogram.get_max_value() / 1000,
            percentiles=percentiles(histogram),
            bounds=bounds(histogram),
        )


class Recording:
    """The samples of one run, in columns; times are monotonic nanoseconds.

    ``intended`` is when the schedule wanted the request on its way (closed loops: when it was sent),
    ``sent`` when it was, ``done`` when its answer was complete or given up. Latency counts from
    ``intended``, service time from ``sent``.
    """

    def __init__(self) -> None:
        self.intended = array("q")
        self.sent = array("q")
        self.done = array("q")
        self.outcome = array("b")
        self.status = array("h")
        self.bytes_in = array("l")
        self.bytes_out = array("l")
        self.tenant = array("b")
        self.texts: list[tuple[int, str]] = []
        """Wrong answers and errors in words, with the intended time of each."""
        self.timings: list[tuple[int, bytes]] = []
        """``Server-Timing`` of those answers whose headers were kept, with the intended time of each."""

    def __len__(self) -> int:
        return len(self.intended)

    @property
    def faults(self) -> Counter[str]:
        """Texts of wrong answers and errors, by how often they came."""
        return Counter(text for _, text in self.texts)

    def add(
        self,
        intended: int,
        sent: int,
        done: int,
        outcome: Outcome,
        status: int,
        bytes_in: int = 0,
        tenant: int = 0,
        *,
        bytes_out: int = 0,
        fault: str | None = None,
        timing: bytes | None = None,
    ) -> None:
        """Append one request."""
        self.intended.append(intended)
        self.sent.append(sent)
        self.done.append(done)
        self.outcome.append(outcome)
        self.status.append(status)
        self.bytes_in.append(bytes_in)
        self.bytes_out.append(bytes_out)
        self.tenant.append(tenant)
        if fault is not None:
            self.texts.append((intended, fault))
        if timing is not None:
            self.timings.append((intended, timing))

    def merge(self, other: Recording) -> None:
        """Append another worker's samples; percentiles are never averaged."""
        for name in COLUMNS:
            getattr(self, name).extend(getattr(other, name))
        self.texts += other.texts
        self.timings += other.timings

    def since(self, start_ns: int) -> Recording:
        """Only the requests intended at ``start_ns`` or later (what is left when the warm-up is cut off)."""
        keep = np.flatnonzero(np.asarray(self.intended) >= start_ns)
        result = Recording()
        for name in COLUMNS:
            column = getattr(self, name)
            getattr(result, name).frombytes(np.asarray(column)[keep].tobytes())
        result.texts = [item for item in self.texts if item[0] >= start_ns]
        result.timings = [item for item in self.timings if item[0] >= start_ns]
        return result

    def ended(self, outcome: Outcome, start_ns: int, end_ns: int) -> int:
        """How many ended so between the two moments, whenever they began."""
        done = np.asarray(self.done)
        return int(np.count_nonzero(self.mask(outcome) & (done >= start_ns) & (done <= end_ns)))

    def mean_in_flight(self, start_ns: int, end_ns: int) -> float:
        """Requests under way between the two moments, averaged over time."""
        if not len(self) or end_ns <= start_ns:
            return 0.0
        begun, done = (np.clip(np.asarray(column), start_ns, end_ns) for column in (self.sent, self.done))
        return float((done - begun).sum()) / (end_ns - start_ns)

    def meets(self, percentile: float, slo_ms: float) -> bool:
        """Whether that percentile of all requests is within ``slo_ms`` of its intended time, with 99 % confidence.

        Refused, failed and wrong ones count as too late, and may be one in a hundred at most; those that the
        generator gave up are not judged.
        """
        judged = len(self) - self.count(Outcome.CANCELLED)
        right = self.latencies_us(Outcome.OK)
        in_time = int(np.count_nonzero(right <= slo_ms * 1000))
        return judged - in_time <= most_over(judged, percentile) and judged - len(right) <= judged * MAX_FAULTS

    def mask(self, *outcomes: Outcome) -> npt.NDArray[np.bool_]:
        """Which samples ended in one of ``outcomes`` (none given: in an answer or a timeout)."""
        wanted = outcomes or (Outcome.OK, Outcome.WRONG, Outcome.TIMEOUT)
        return np.isin(np.asarray(self.outcome), [int(outcome) for outcome in wanted])

    def latencies_us(self, *outcomes: Outcome) -> npt.NDArray[np.int64]:
        """Microseconds from the intended time."""
        return self._durations(self.intended, outcomes)

    def service_us(self, *outcomes: Outcome) -> npt.NDArray[np.int64]:
        """Microseconds from the moment of sending: blind to what the schedule had to wait for."""
        return self._durations(self.sent, outcomes)

    def _durations(self, start: array[int], outcomes: tuple[Outcome, ...]) -> npt.NDArray[np.int64]:
        if not len(self):
            return np.empty(0, dtype=np.int64)
        values = (np.asarray(self.done) - np.asarray(start)) // 1000
        return np.asarray(values[self.mask(*outcomes)], dtype=np.int64)

    def lag_us(self) -> npt.NDArray[np.int64]:
        """Schedule lag: microseconds between the intended time and the generator's turn to send."""
        return np.asarray((np.asarray(self.sent) - np.asarray(self.intended)) // 1000, dtype=np.int64)

    def count(self, outcome: Outcome) -> int:
        """How many ended so."""
        return int(np.count_nonzero(np.asarray(self.outcome) == int(outcome)))

    def statuses(self) -> dict[str, int]:
        """Requests by HTTP status (0: no answer)."""
        values, counts = np.unique(np.asarray(self.status), return_counts=True)
        return {str(value): int(count) for value, count in zip(values, counts, strict=True)}

    def write_jsonl(self, path: Path) -> None:
        """Every sample as a line of gzipped JSON: microseconds after the first intended time."""
        first = min(self.intended, default=0)
        encoder = msgspec.json.Encoder()
        with gzip.open(path, "wb", compresslevel=3) as file:
            for intended, sent, done, outcome, status, size, tenant in zip(
                self.intended, self.sent, self.done, self.outcome, self.status, self.bytes_in, self.tenant, strict=True
            ):
                line = {
                    "intended_us": (intended - first) // 1000,
                    "sent_us": (sent - first) // 1000,
                    "done_us": (done - first) // 1000,
                    "outcome": Outcome(outcome).name.lower(),
                    "status": status,
                    "bytes": size,
                    "tenant": tenant,
                }
                file.write(encoder.encode(line) + b"\n")


def histogram_of(values_us: Iterable[int] | npt.NDArray[np.int64]) -> HdrHistogram:
    """A histogram of microseconds (below 1 counts as 1, above an hour as an hour)."""
    histogram = new_histogram()
    clipped = np.clip(
        np.asarray(list(values_us) if not isinstance(values_us, np.ndarray) else values_us), 1, HIGHEST_US
    )
    unique, counts = np.unique(clipped.astype(np.int64), return_counts=True)
    for value, count in zip(unique.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    return histogram


def merged(encodings: Iterable[bytes]) -> HdrHistogram:
    """The sum of histograms that workers sent in HdrHistogram's own encoding."""
    total = new_histogram()
    for text in encodings:
        total.decode_and_add(text)
    return total


def encoded(histogram: HdrHistogram) -> str:
    """HdrHistogram's own compressed encoding, in base64; :func:`merged` reads it."""
    return str(histogram.encode().decode())


def write_hgrm(histogram: HdrHistogram, path: Path) -> None:
    """The percentile distribution in HdrHistogram's text format, in milliseconds."""
    with path.open("wb") as file:
        histogram.output_percentile_distribution(file, 1000)


def as_dict(value: Any) -> Any:
    """A struct as plain data, for ``report.json``."""
    return msgspec.to_builtins(value)
