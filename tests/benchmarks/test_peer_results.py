"""What the comparison with peers makes of its rounds, and whom it does not measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.client import connect
from benchmarks.measurement import Measurement
from benchmarks.peers import tuning
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.compare import AnswerError, Comparison, Load, verify
from benchmarks.peers.summary import PeerResult, ratios, result, table, verdicts
from benchmarks.peers.tuning import Tuned, TuningError
from benchmarks.peers.ways import Way
from benchmarks.suite import Slo
from benchmarks.workloads import WORKLOADS
from scripts.benchmarks_page import commands, uncommitted
from tests.benchmarks.samples import ENVIRONMENT, measurement, results_of


def _result(server: str, rounds: list[dict[int, float]], **changes: Any) -> PeerResult:
    """``rounds`` are goodput by number of users."""
    points = [
        [measurement(users, value, run=run, workload="sentiment", **changes) for users, value in found.items()]
        for run, found in enumerate(rounds)
    ]
    return result(server, "sentiment", Way(2, 1) if server in PEERS else None, points)


def test_a_server_stands_with_the_users_at_which_it_did_best() -> None:
    found = _result("litserve", [{8: 90, 16: 110}, {8: 95, 16: 100}, {8: 130, 16: 105}])
    assert (found.users, found.goodput.value, found.rounds) == (16, 105, [110, 100, 105])
    assert found.way == "2 x 1, batch 8 in 5 ms"


def test_points_that_met_the_objective_come_first() -> None:
    late = [measurement(32, 500, run=run, meets_slo=False) for run in range(3)]
    in_time = [measurement(8, 90, run=run) for run in range(3)]
    found = result("ray", "sentiment", None, [[a, b] for a, b in zip(in_time, late, strict=True)])
    assert (found.users, found.meets_slo) == (8, True)
    hopeless = result("ray", "sentiment", None, [[item] for item in late])
    assert not hopeless.meets_slo
    assert "~~Ray Serve~~" in table([hopeless])[2]


@pytest.mark.parametrize(
    ("own", "sentence"),
    [(140.0, "the target of 1.3 is met"), (110.0, "the target of 1.3 is missed"), (80.0, "Tidegate loses")],
)
def test_the_best_peer_is_what_we_are_measured_by(own: float, sentence: str) -> None:
    results = [
        _result("tidegate", [{16: own}] * 3),
        _result("fastapi", [{16: 60.0}] * 3),
        _result("bentoml", [{16: 100.0}] * 3),
        _result("triton", [{16: 150.0}] * 3),
    ]
    peer, direct = ratios(results)
    assert (peer.server, direct.server) == ("bentoml", "triton")
    assert peer.ratio.value == pytest.approx(own / 100)
    assert direct.ratio.value == pytest.approx(own / 150)
    assert sentence in verdicts(results)[0]


def test_rounds_that_disagree_are_said_to_be_too_noisy() -> None:
    noisy = [_result("tidegate", [{16: 100.0}, {16: 140.0}, {16: 80.0}]), _result("ray", [{16: 50.0}] * 3)]
    assert "too noisy" in verdicts(noisy)[-1]
    few = [_result("tidegate", [{16: 100.0}]), _result("ray", [{16: 50.0}])]
    assert "too few rounds" in verdicts(few)[-1]


def test_an_invalid_server_is_nobodys_measure() -> None:
    results = [
        _result("tidegate", [{16: 100.0}] * 3, verdict="INVALID", reasons=["9 usage records for 10 answered requests"]),
        _result("ray", [{16: 50.0}] * 3),
    ]
    assert ratios(results) == []
    assert "INVALID" in table(results)[2]


def test_a_peer_that_missed_the_objective_is_not_the_best_one() -> None:
    results = [
        _result("tidegate", [{16: 100.0}] * 3),
        _result("ray", [{64: 500.0}] * 3, meets_slo=False),
        _result("bentoml", [{16: 90.0}] * 3),
        _result("triton", [{64: 300.0}] * 3, meets_slo=False),
    ]
    assert [item.server for item in ratios(results)] == ["bentoml"]
    hopeless = [results[0], results[1]]
    assert ratios(hopeless) == []
    assert "no other server met the objective" in verdicts(hopeless)[0]


def test_nothing_is_claimed_where_tidegate_missed_its_objective() -> None:
    results = [_result("tidegate", [{16: 500.0}] * 3, meets_slo=False), _result("ray", [{16: 50.0}] * 3)]
    assert ratios(results) == []
    (line,) = verdicts(results)
    assert "Tidegate missed its objective" in line
    assert "the target of 1.3 is missed" in line


class Tuner(Comparison):
    """Answers at the rates that the test says, in place of a server that is started."""

    async def round(self, server: str, way: Way | None, number: int = 0) -> list[Measurement]:
        assert way is not None
        if way.batch == 32:
            raise OSError("does not work")
        rate = 100 * way.threads + way.batch + (1000 if way.settings else 0) - way.wait_ms
        return [measurement(16, rate)]


async def test_each_stage_goes_on_from_the_best_way_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    best, found = await Tuner("sentiment", Path(), Load((16,), 1, 0, 0, Slo(100), 1)).tune("litserve")
    assert found == {
        "2 x 1, batch 8 in 5 ms": 103.0,
        "1 x 2, batch 8 in 5 ms": 203.0,
        "1 x 2, batch 1": 196.0,
        "1 x 2, batch 32 in 5 ms": 0.0,
        "1 x 2, batch 8 in 20 ms": 188.0,
        "1 x 2, batch 8 in 5 ms, LITSERVE_FAST_QUEUE=1": 1203.0,
    }
    assert best == Way(1, 2, settings={"LITSERVE_FAST_QUEUE": "1"})
    assert best.environment()["LITSERVE_FAST_QUEUE"] == "1"


def test_a_way_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way(3, 4, 16, 2.5)
    for name, value in way.environment().items():
        monkeypatch.setenv(name, value)
    assert Way.of_environment() == way
    assert (way.wait_s, Way(1, 1, batch=1).wait_s) == (0.0025, 0)


def test_what_was_tuned_before_stays_with_its_evidence(tmp_path: Path) -> None:
    path = tmp_path / "results" / "tuning.json"
    known = tuning.read(path)
    assert known.ways("sentiment") == {}
    for task, way in (("sentiment", Way(2, 1)), ("imagenet", Way(1, 2, 1))):
        known = tuning.read(path)
        known.tuned.setdefault("ray", {})[task] = Tuned(way, {str(way): 9.0}, f"tune {task}", task, "abc", 2)
        tuning.write(known, path)
    found = tuning.read(path)
    assert found.ways("sentiment") == {"ray": Way(2, 1)}
    assert found.tuned["ray"]["sentiment"].goodput == {"2 x 1, batch 8 in 5 ms": 9.0}
    assert found.commands() == ["tune imagenet", "tune sentiment"]


def test_a_tuning_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text('{"ways": {}}')
    with pytest.raises(TuningError, match="tune again"):
        tuning.read(path)


async def test_a_server_that_answers_something_else_is_not_measured(start_server: Any) -> None:
    workload = WORKLOADS["embeddings"](1)
    async with connect(start_server(), None) as client:
        with pytest.raises(AnswerError, match="not a vector|not JSON"):
            await verify(client, workload)


def test_an_answer_other_than_the_reference_is_wrong() -> None:
    workload = WORKLOADS["sentiment"](1)
    payload = workload.golden(0)
    body = b'[[{"label": "%s", "score": 0.9}]]' % str(payload.expected).encode()
    workload.check(payload, body)
    fresh = WORKLOADS["sentiment"](1)
    fresh.expect(0, (str(payload.expected), 0.99))
    with pytest.raises(Exception, match="golden input 0"):
        fresh.check(payload, body)


def test_published_figures_name_what_was_typed_and_come_from_a_commit() -> None:
    report: dict[str, Any] = {
        "environment": {**ENVIRONMENT, "command": "python -m benchmarks.peers run --seconds 9"},
        "tuning": {"commands": ["python -m benchmarks.peers tune --rounds 2"]},
        "results": [{"server": name} for name in ("tidegate", "ray", "triton", "fastapi", "ray")],
    }
    assert commands(report, results_of()) == [
        "python -m benchmarks.peers install fastapi ray",
        "python -m benchmarks.peers tune --rounds 2",
        "python -m benchmarks.peers run --seconds 9",
        ENVIRONMENT["command"],
        "python scripts/benchmarks_page.py",
    ]
    clean, dirty = ({"git": {"commit": "0123456789abcdef", "dirty": dirty}} for dirty in (False, True))
    assert uncommitted({"peers": clean, "headline": clean}) == []
    assert uncommitted({"peers": clean, "headline": dirty}) == [
        "the report headline was made with local changes beside commit 0123456789ab"
    ]
