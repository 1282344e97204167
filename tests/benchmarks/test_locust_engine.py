"""Locust as the engine of a closed sweep: the same measurement, whoever made the load."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks import locust_engine
from benchmarks.locust_engine import LocustError, LocustLoad, LocustRun, of_locust
from benchmarks.null_server import serving
from benchmarks.recording import encoded, histogram_of
from benchmarks.suite import Slo


@pytest.fixture
def null_server() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.mark.slow
async def test_a_run_is_counted_in_all_processes_and_only_within_the_window(null_server: str) -> None:
    load = LocustLoad("identity", null_server, None, 4, 2.0, 1.0, 1)
    run = await locust_engine.run(load)
    found = of_locust(run, scenario="closed_sweep", workload="identity", protocol="http", slo=Slo(1000.0))
    assert found.verdict == "VALID", found.reasons
    assert found.counts["ok"] == sum(found.counts.values()) == found.latency.samples > 0
    assert found.throughput == found.goodput == found.counts["ok"] / 2
    assert len(run.cpu_s) == load.processes
    assert run.answered > found.counts["ok"]  # the warm-up and what came after the window
    assert (found.label, found.load["engine"], found.load["users"]) == ("4 users, Locust", "locust", 4)
    assert sum(window.answers_per_s for window in found.windows) == pytest.approx(found.counts["ok"], abs=8)


@pytest.mark.slow
async def test_wrong_answers_are_no_goodput(start_server: Callable[..., str]) -> None:
    run = await locust_engine.run(LocustLoad("embeddings", start_server(), None, 1, 1.0, 0.2, 1))
    found = of_locust(run, scenario="closed_sweep", workload="embeddings", protocol="http", slo=Slo(1000.0))
    assert found.counts["wrong"] > 0
    assert found.goodput == 0
    assert not found.meets_slo
    assert "wrong answer" in next(iter(found.faults))


@pytest.mark.slow
async def test_what_locust_cannot_do_is_said_in_its_words() -> None:
    with pytest.raises(LocustError, match="Locust counted nothing"):
        await locust_engine.run(LocustLoad("nothing", "http://127.0.0.1:9", None, 1, 1.0, 0.0, 1))


def _run(milliseconds: list[float], *, begun: int | None = None, cpu_s: float = 0.1, shed: int = 0) -> LocustRun:
    """One second of one user."""
    histogram = encoded(histogram_of([int(value * 1000) for value in milliseconds]))
    number = len(milliseconds) + shed
    counters = {
        "outcomes": {"ok": len(milliseconds), "shed": shed}, "statuses": {}, "faults": {}, "seconds": {"0": number},
        "totals": {"begun": begun or number, "finished": number, "answered": number, "bytes_in": 10, "bytes_out": 20},
    }  # fmt: skip
    histograms = {"right": histogram, "ended": histogram, "shed": encoded(histogram_of([2000] * shed))}
    return LocustRun(LocustLoad("identity", "", None, 1, 1.0, 0.0, 1), counters, histograms, {"7": cpu_s})


@pytest.mark.parametrize(
    ("run", "goodput", "met", "verdict", "note"),
    [
        (_run([5.0] * 200), 200, True, "VALID", ""),
        (_run([5.0] * 80), 80, False, "VALID", ""),  # too few to say
        (_run([5.0] * 150 + [200.0] * 50), 150, False, "VALID", ""),
        (_run([100.0] * 200), 200, True, "VALID", ""),  # within means at most
        (_run([5.0] * 190, shed=10), 190, False, "VALID", ""),
        (_run([5.0] * 200, begun=210), 200, True, "INVALID", ""),
        (_run([]), 0, False, "INVALID", ""),
        (_run([5.0] * 200, cpu_s=0.95), 200, True, "VALID", "lower bound"),
    ],
)
def test_the_verdicts_are_those_of_the_other_engine(
    run: LocustRun, goodput: float, met: bool, verdict: str, note: str
) -> None:
    found = of_locust(run, scenario="closed_sweep", workload="identity", protocol="http", slo=Slo(100.0))
    assert (found.goodput, found.meets_slo, found.verdict) == (goodput, met, verdict)
    assert note in " ".join(found.notes)
