from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from gateway.access.limits import Cap, Limits, LocalLimiter, gate_of, headers_of
from gateway.types import Units

HUB_ITEM = re.compile(r'"(?P<name>\w+)"\s*;\s*r\s*=\s*(?P<r>\d+)\s*;\s*t\s*=\s*(?P<t>\d+)')
"""What huggingface_hub reads of ``RateLimit``."""
HUB_POLICY = re.compile(r'"(?P<name>\w+)"\s*;\s*q\s*=\s*(?P<q>\d+).*?w\s*=\s*(?P<w>\d+)')


def take(limiter, gate, now=0.0, share=1.0, **units):
    return limiter.take(gate, Units(**units), now, share)


def key_gate(**limits):
    return gate_of([("key", "k", Limits(**limits))])


def test_a_burst_passes_exactly_the_limit():
    limiter, gate = LocalLimiter(), key_gate(requests_per_second=10, burst=25)
    verdicts = [take(limiter, gate) for _ in range(100)]
    assert sum(verdict.refused is None for verdict in verdicts) == 25
    assert verdicts[-1].wait_s == pytest.approx(0.1)


def test_the_rate_holds_over_time():
    limiter, gate = LocalLimiter(), key_gate(requests_per_second=10, burst=5)
    passed = sum(take(limiter, gate, now=step * 0.01).refused is None for step in range(1001))
    assert passed == 5 + 100


def test_the_wait_is_the_time_until_it_passes():
    limiter, gate = LocalLimiter(), key_gate(tokens_per_minute=600)
    take(limiter, gate, tokens=600)
    wait = take(limiter, gate, tokens=50).wait_s
    assert wait == pytest.approx(5.0)
    assert take(limiter, gate, now=wait - 0.01, tokens=50).refused is not None
    assert take(limiter, gate, now=wait + 0.01, tokens=50).refused is None


def test_all_is_taken_or_nothing():
    limiter = LocalLimiter()
    gate = gate_of(
        [("key", "k", Limits(requests_per_second=5, concurrency=9)), ("project", "p", Limits(tokens_per_minute=60))]
    )
    assert take(limiter, gate, tokens=60).refused is None
    for _ in range(20):
        assert take(limiter, gate, tokens=60).refused.name == "project_tokens"
    assert limiter.in_use("key:k:concurrency") == 1
    for _ in range(4):
        assert take(limiter, gate).refused is None
    assert take(limiter, gate).refused.name == "key_requests"


def test_concurrency_is_a_number_of_places():
    limiter, gate = LocalLimiter(), key_gate(concurrency=20)
    for _ in range(20):
        assert take(limiter, gate).refused is None
    assert isinstance(take(limiter, gate).refused, Cap)
    limiter.release(gate)
    assert take(limiter, gate).refused is None
    for _ in range(20):
        limiter.release(gate)
    assert limiter.in_use("key:k:concurrency") == 0
    assert limiter._in_use == {}


def test_subjects_are_independent():
    limiter = LocalLimiter()
    for name in ("a", "b"):
        gate = gate_of([("key", name, Limits(requests_per_second=1))])
        assert take(limiter, gate).refused is None
        assert take(limiter, gate).refused is not None


def test_a_share_of_every_limit():
    limiter, gate = LocalLimiter(), key_gate(requests_per_second=10, burst=20, concurrency=9)
    assert sum(take(limiter, gate, share=1 / 2).refused is None for _ in range(50)) == 4
    assert limiter.in_use("key:k:concurrency") == 4


def test_a_limit_lowered_counts_at_once():
    limiter = LocalLimiter()
    take(limiter, key_gate(requests_per_second=1000))
    assert sum(take(limiter, key_gate(requests_per_second=3)).refused is None for _ in range(50)) == 3


def test_memory_is_bounded():
    limiter = LocalLimiter(size=100)
    for number in range(1000):
        take(limiter, gate_of([("key", str(number), Limits(requests_per_second=1))]))
    assert len(limiter._buckets) == 100


def test_headers_are_what_clients_read():
    limiter = LocalLimiter()
    gate = gate_of(
        [
            ("key", "k", Limits(requests_per_second=10, burst=20, tokens_per_minute=1000, concurrency=5)),
            ("project", "p-1.x", Limits(requests_per_second=2, burst=4)),
        ]
    )
    headers = headers_of(gate, take(limiter, gate, tokens=10))
    policies = headers["RateLimit-Policy"].split(",")
    assert [HUB_POLICY.match(item).groupdict() for item in policies[:2]] == [
        {"name": "key_requests", "q": "20", "w": "2"},
        {"name": "key_tokens", "q": "1000", "w": "60"},
    ]
    assert '"key_concurrency";q=5;qu="concurrent-requests"' in headers["RateLimit-Policy"]
    first = HUB_ITEM.match(headers["RateLimit"])
    assert (first["name"], first["r"]) == ("project_requests", "3")  # the tightest comes first
    assert headers["x-ratelimit-limit-requests"] == "4"
    assert headers["x-ratelimit-remaining-requests"] == "3"
    assert headers["x-ratelimit-remaining-tokens"] == "990"
    assert re.fullmatch(r"\d+ms", headers["x-ratelimit-reset-requests"])
    for _ in range(3):
        take(limiter, gate)
    refusal = take(limiter, gate)
    item = HUB_ITEM.match(headers_of(gate, refusal)["RateLimit"])
    assert (item["name"], item["r"], item["t"]) == ("project_requests", "0", "1")
    assert refusal.wait_s == pytest.approx(0.5)


def test_no_limits_no_headers():
    gate = gate_of([("key", "k", Limits())])
    assert headers_of(gate, take(LocalLimiter(), gate)) == {}


@pytest.mark.parametrize("values", [{"burst": 0}, {"requests_per_second": 0}, {"concurrency": -1}, {"requests": 1},
                                    {"tokens_per_minute": "many"}, {"requests_per_second": float("nan")}])  # fmt: skip
def test_limits_that_are_none_are_refused(values):
    with pytest.raises(ValidationError):
        Limits(**values)


@pytest.mark.parametrize(
    ("tier", "rule", "rate", "burst"),
    [
        ({"requests_per_second": 100, "burst": 200}, {"requests_per_second": 1}, 1, 1),
        ({"requests_per_second": 1}, {"requests_per_second": 100, "burst": 200}, 1, 1),
        ({"requests_per_second": 100}, {"burst": 5}, 100, 5),
        ({"burst": 200}, {"requests_per_second": 7.5}, 7.5, 7),
        ({"requests_per_second": 0.1, "burst": 3}, {"concurrency": 2}, 0.1, 3),
        ({"requests_per_second": 5, "burst": 9}, {"requests_per_second": 50, "burst": 4}, 5, 4),
    ],
)  # fmt: skip
def test_the_tighter_of_two_bursts_wins_as_it_is_beside_its_own_rate(tier, rule, rate, burst):
    for one, other in ((tier, rule), (rule, tier)):
        (bucket,) = gate_of([("key", "k", Limits(**one).narrowed(Limits(**other)))]).rates
        assert (bucket.per_second, bucket.capacity) == (rate, burst)


def test_what_a_share_never_holds_is_let_through_when_it_is_full_and_owed():
    limiter, gate = LocalLimiter(), gate_of([("key", "k", Limits(tokens_per_minute=600))])
    passed, waited = 0, 0.0
    for second in range(1200):
        verdict = limiter.take(gate, Units(tokens=500), float(second), 0.25)
        assert verdict.remaining[0] >= 0
        passed += verdict.refused is None
        waited = max(waited, verdict.wait_s)
    # A quarter of 600 a minute is 2.5 a second; the first one found a full share of 150.
    assert passed == 6 == (150 + 1200 * 2.5) // 500
    assert waited <= 500 / 2.5


def test_a_debt_refuses_the_small_ones_too_until_it_is_paid():
    limiter, gate = LocalLimiter(), gate_of([("key", "k", Limits(tokens_per_minute=600))])
    assert limiter.take(gate, Units(tokens=500), 0.0, 0.5).refused is None
    verdict = limiter.take(gate, Units(tokens=10), 0.0, 0.5)
    assert verdict.wait_s == pytest.approx((200 + 10) / 5)
    assert limiter.take(gate, Units(tokens=10), verdict.wait_s + 0.01, 0.5).refused is None
