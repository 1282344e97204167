"""Guessing keys (section 1.1, cases 15 and 16): by trying many, and by the time that a refusal takes."""

from __future__ import annotations

import os
import random
import ssl
import statistics
import time
from collections.abc import Callable

import httpx
import pytest

from gateway.access import keyformat
from tests.live.hostile.access import ask, bearer, new_key, unknown_key
from tests.live.hostile.invariants import Invariants

pytestmark = pytest.mark.live

INFER = ("POST", "/v2/models/identity/infer")
PAIRS = int(os.environ.get("TIMING_PAIRS", "200"))
"""``TIMING_PAIRS=10000`` is the long run: about ten minutes."""


def test_15_a_thousand_bad_keys_from_one_address(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client
) -> None:
    attacker, neighbour = near(), near(invariants.gateway.key)
    usual = near(new_key(operator)["key"])
    assert ask(usual, *INFER).status_code == 200
    statuses, latencies = [], []
    with invariants.case(usage={"completed": 20}) as case:
        for number in range(1000):
            key = unknown_key() if number % 2 else f"tg_live_{number:050d}"
            answer = ask(attacker, *INFER, headers=bearer(key))
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
            if number % 100 == 0:
                case.refused(answer, {401, 429}, "oip")
            if number % 50 == 49:
                sent = time.monotonic()
                assert ask(neighbour, *INFER).status_code == 200
                latencies.append(time.monotonic() - sent)
    first = statuses.index(429)
    assert set(statuses[:first]) == {401}
    assert 10 <= first <= 60
    assert statuses.count(429) > 900
    assert statistics.median(latencies) < 1.0
    # Nor is the attacker's own address shut to a good key: a proxy may stand there.
    answers = [ask(attacker, *INFER, headers=bearer(invariants.gateway.key)) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.timeout(900 + PAIRS / 2)
def test_16_known_and_unknown_ids_take_the_same_time(invariants: Invariants, operator: httpx.Client) -> None:
    """A key whose id exists with another secret, and one whose id does not: 401 both, and as fast.

    Each pair comes from an address of its own, or the brute-force throttle would answer in place of the look-up.
    The statistic is the trimmed mean of the differences within pairs, in units of its own spread: a look-up that
    only one of the two has (most of a millisecond here), or an early exit, stands out; a busy machine does not.
    """
    known = [new_key(operator)["key_id"] for _ in range(8)]
    chance = random.Random(16)
    trusted = ssl.create_default_context()  # one for all clients: making it takes longer than their requests
    differences: list[float] = []
    control: list[float] = []
    for number in range(PAIRS):
        address = f"127.2.{number // 250}.{number % 250 + 2}"
        transport = httpx.HTTPTransport(local_address=address, verify=trusted)
        with httpx.Client(base_url=invariants.gateway.url, transport=transport, timeout=30.0) as client:
            client.get("/healthz/live")  # connected
            kinds = ["known", "unknown", "again", "malformed"]
            chance.shuffle(kinds)
            seconds = {}
            for kind in kinds:
                key_id = chance.choice(known) if kind == "known" else keyformat.generate_id()
                key = keyformat.generate(key_id, test=False).text
                if kind == "malformed":
                    key = key[:-1] + ("0" if key[-1] != "0" else "1")
                headers = bearer(key)
                begin = time.perf_counter()
                answer = client.get("/v2/models/identity", headers=headers)
                seconds[kind] = time.perf_counter() - begin
                assert answer.status_code == 401
        differences.append(seconds["known"] - seconds["unknown"])
        control.append(seconds["again"] - seconds["malformed"])
    assert abs(trimmed_z(differences)) < 4.5
    # The same statistic does see a look-up: malformed keys are refused without one.
    assert trimmed_z(control) > 4.5


def trimmed_z(values: list[float], trim: float = 0.2) -> float:
    """Trimmed mean over its standard error (Yuen): how many errors it is from zero."""
    ordered = sorted(values)
    cut = int(len(ordered) * trim)
    middle = ordered[cut : len(ordered) - cut]
    winsorised = [middle[0]] * cut + middle + [middle[-1]] * cut
    error = statistics.stdev(winsorised) / ((1 - 2 * trim) * len(ordered) ** 0.5)
    return statistics.fmean(middle) / error
