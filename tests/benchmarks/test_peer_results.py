"""What the comparison with peers makes of its rounds, and whom it does not measure."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.client import connect
from benchmarks.peers.__main__ import best_way
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.compare import AnswerError, verify
from benchmarks.peers.summary import PeerResult, ratios, result, table, verdicts
from benchmarks.peers.ways import Way
from benchmarks.workloads import WORKLOADS
from tests.benchmarks.samples import measurement


def _result(server: str, rounds: list[dict[int, float]], **changes: Any) -> PeerResult:
    """``rounds`` are goodput by number of users."""
    points = [
        [measurement(users, value, run=run, workload="sentiment", **changes) for users, value in found.items()]
        for run, found in enumerate(rounds)
    ]
    return result(server, "sentiment", PEERS[server].ways(2)[0] if server in PEERS else None, points)


def test_a_server_stands_with_the_users_at_which_it_did_best() -> None:
    found = _result("litserve", [{8: 90, 16: 110}, {8: 95, 16: 100}, {8: 130, 16: 105}])
    assert (found.users, found.goodput.value, found.rounds) == (16, 105, [110, 100, 105])
    assert found.way == "2 x 1"


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


def test_one_way_is_chosen_for_all_tasks() -> None:
    evidence = {"sentiment": {"1 x 2": 100.0, "2 x 1": 90.0}, "imagenet": {"1 x 2": 50.0, "2 x 1": 100.0}}
    cores = PEERS["litserve"].ways(2)
    assert {str(way) for way in cores} == {"1 x 2", "2 x 1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 2)
        assert best_way("litserve", evidence) == Way(2, 1)


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
