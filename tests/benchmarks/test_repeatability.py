"""What a report says about itself: A/A noise, agreement of its runs, the generator's limit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks import calibration
from benchmarks.client import connect
from benchmarks.compare import differences
from benchmarks.measurement import Measurement
from benchmarks.null_server import serving
from benchmarks.observe import Resources
from benchmarks.points import grouped as points
from benchmarks.repeatability import disturbances, doubts, headlines, noise_floors, repeats_within
from benchmarks.workloads import WORKLOADS
from tests.benchmarks.samples import measurement, results_of


def _runs(values: Sequence[float], users: int = 8, **changes: object) -> list[Measurement]:
    return [measurement(users, value, run=run, **changes) for run, value in enumerate(values)]


def _pairs(first: Sequence[float], second: Sequence[float]) -> list[Measurement]:
    return [
        *_runs(first, scenario="noise_floor", label="8 users, A"),
        *_runs(second, scenario="noise_floor", label="8 users, A'"),
    ]


@pytest.mark.parametrize(
    ("values", "within"),
    [([100, 101, 99, 100, 100], 0.01), ([100, 120, 80, 100, 100], 0.2), ([100, 100], None), ([0, 0, 0], None)],
)
def test_agreement_of_runs(values: list[float], within: float | None) -> None:
    found = repeats_within(values)
    assert found == (within if within is None else pytest.approx(within, abs=0.005))


def test_the_headline_is_the_best_point_that_met_its_objective_every_time() -> None:
    found = headlines(
        list(
            points(
                [
                    *_runs([100, 101, 99]),
                    *_runs([500, 500, 500], users=16, meets_slo=False),
                    *_runs([400, 400, 400], users=32, verdict="INVALID"),
                    *_runs([300], users=64),  # one run has no interval
                    *_runs([900, 900, 900], users=4, scenario="overload"),
                ]
            ).values()
        )
    )
    assert [(item.label, item.goodput.value) for item in found] == [("8 users", 100)]


def test_a_noisy_machine_is_said_to_be_one() -> None:
    quiet = headlines(list(points(_runs([100, 101, 99, 100, 100])).values()))
    noisy = headlines(list(points(_runs([100, 130, 70, 100, 90])).values()))
    once = headlines(list(points(_runs([100])).values()))
    still, loud = (noise_floors(_pairs([100] * 5, second)) for second in ([101] * 5, [90, 111, 120, 93, 100]))
    assert doubts(quiet, still) == []
    assert "too noisy to come out again" in doubts(noisy, still)[0]
    assert "differs by up to" in doubts(quiet, loud)[0]
    assert "fewer than three runs" in doubts(once, still)[0]


def test_a_change_smaller_than_the_measured_noise_is_not_claimed() -> None:
    before, after = _runs([100, 101, 99, 100, 100]), _runs([110, 111, 109, 110, 110])
    (claimed,) = differences(results_of(*before), results_of(*after))
    assert claimed.word == "better"
    noise = _pairs([100] * 5, [88, 112, 115, 90, 100])
    drowned = next(
        item for item in differences(results_of(*before, *noise), results_of(*after)) if "A" not in item.point
    )
    assert drowned.word == "no difference"


def test_processor_time_of_others_is_what_nobody_here_used() -> None:
    before = Resources({"gateway": 1.0}, 0, generator_s=1.0, busy_s=10.0, at_s=0.0)
    alone = Resources({"gateway": 1.5}, 0, generator_s=1.25, busy_s=10.75, at_s=1.0)
    crowded = Resources({"gateway": 1.5}, 0, generator_s=1.25, busy_s=11.25, at_s=1.0)
    assert alone.foreign_share(before) == 0
    assert crowded.foreign_share(before) > 0
    quiet, loud = (_runs([100], foreign_cpu_share=share)[0] for share in (0.01, 0.4))
    assert disturbances([quiet, quiet]) == []
    assert disturbances([quiet, loud]) == ["other programs used up to 40% of the processors in 1 of 2 measurements"]


async def test_the_null_server_answers_as_identity_does() -> None:
    workload = WORKLOADS["identity"](1)
    with serving() as url:
        async with connect(url, None) as client:
            for index in range(3):
                payload = workload.request(index)
                exchange = await client.post(payload)
                assert exchange.status == 200
                workload.check(payload, exchange.body)


@pytest.mark.slow
async def test_a_generator_that_cannot_send_three_times_as_much_is_not_calibrated() -> None:
    found = await calibration.calibrate(60_000, 1, seconds=0.2)  # 180,000 a second: no Python does that
    assert found.verdict == "INVALID"
    assert 0 < found.headroom < calibration.HEADROOM
    assert "60,000/s" in calibration.sentence(found)
    near, far = measurement(64, 60_000.0), measurement(1, found.capacity / 4)
    calibration.mark([near, far], found)
    assert "lower bound" in " ".join(near.notes)
    assert near.valid
    assert far.notes == []


@pytest.mark.parametrize(("model", "offered", "valid"), [("open", 400.0, False), ("open", 300.0, True)])
def test_an_open_loop_near_the_generators_limit_is_invalid(model: str, offered: float, valid: bool) -> None:
    found = calibration.Calibration(offered, 900.0, 15.0, 3 * offered, 900.0, {"p99": 0.1}, 0, "INVALID", ["slow"])
    item = measurement(1, 50.0, load={"model": model, "offered": offered})
    grpc = measurement(1, 50.0, protocol="grpc", load={"model": model, "offered": offered})
    locust = measurement(64, 800.0, load={"model": "closed", "users": 64, "engine": "locust"})
    calibration.mark([item, grpc, locust], found)
    assert item.valid is valid
    assert any("2.2 times this rate" in reason for reason in item.reasons) is not valid
    assert grpc.valid  # the null server speaks HTTP
    assert (locust.valid, locust.notes) == (True, [])  # another generator


def test_the_highest_rate_is_what_was_answered_or_offered_over_http() -> None:
    closed, grpc = measurement(8, 100.0), measurement(8, 900.0, protocol="grpc")
    overload = measurement(1, 50.0, load={"model": "open", "offered": 400.0})
    assert calibration.highest_rate([closed, grpc, overload]) == 400
    assert calibration.highest_rate([]) == 0
