from __future__ import annotations

from collections import Counter

import pytest

from gateway.access.admission import Admission
from gateway.access.budgets import Budgets
from gateway.access.key import KeySpec
from gateway.access.limits import Limits
from gateway.access.policy import PICO, Budget, Policies
from gateway.access.shared import SharedLimiter
from gateway.errors import BudgetExceeded, GatewayError, Invalid, NotFound, RateLimited, TooLarge
from tests.gateway.access.support import admitted_call, make_principal, statements


@pytest.fixture
def budgets(store, policies, clock, wall):
    return Budgets(store, policies, "gateway", clock=clock, wall_clock=wall)


@pytest.fixture
def admission(policies, budgets, clock):
    return Admission(policies, budgets, clock=clock)


async def enter_many(admission, number, principal=None, **values):
    """Permits, and how the others were refused."""
    principal = principal or make_principal()
    permits, kinds = [], Counter()
    for _ in range(number):
        call = admitted_call(principal, **values)
        try:
            permits.append((await admission.enter(call), call))
        except GatewayError as error:
            kinds[type(error)] += 1
    return permits, kinds


async def test_without_limits_a_call_costs_no_statement_and_gets_no_headers(admission, store):
    with statements(store) as seen:
        call = admitted_call(make_principal())
        (await admission.enter(call)).leave(call)
    assert seen == []
    assert call.headers == {}


async def test_a_burst_of_many_times_the_limit_passes_exactly_the_limit(admission, policies, store, clock):
    await policies.set_tier("default", Limits(requests_per_second=10, burst=30))
    with statements(store) as seen:
        permits, kinds = await enter_many(admission, 300)
    assert len(permits) == 30
    assert kinds == {RateLimited: 270}
    assert seen == []  # a refusal costs no statement
    clock.forward(1)
    permits, kinds = await enter_many(admission, 100)
    assert len(permits) == 10
    assert admission.refused == {"key_requests": 270 + 90}


async def test_a_refusal_says_when_to_come_back(admission, policies):
    await policies.set_tier("default", Limits(requests_per_second=0.25, burst=1))
    await enter_many(admission, 1)
    call = admitted_call(make_principal())
    with pytest.raises(RateLimited) as refusal:
        await admission.enter(call)
    assert 4.0 <= refusal.value.retry_after_s <= 4.8
    assert call.headers["RateLimit"].startswith('"key_requests";r=0;t=4')
    assert call.headers["RateLimit-Policy"] == '"key_requests";q=1;w=4'


async def test_what_would_be_refused_anyway_is_known_before_the_units_are(admission, policies, clock):
    await policies.set_tier("default", Limits(requests_per_second=0.25, burst=1, concurrency=1))
    call = admitted_call(make_principal(), tokens=0, pixels=0)
    for _ in range(3):
        admission.check(call)  # takes nothing
    permit = await admission.enter(call)
    with pytest.raises(RateLimited) as refusal:
        admission.check(admitted_call(make_principal()))
    assert "concurrent" in refusal.value.message
    permit.leave(call)
    late = admitted_call(make_principal())
    with pytest.raises(RateLimited) as refusal:
        admission.check(late)
    assert 4.0 <= refusal.value.retry_after_s <= 4.8
    assert late.headers["RateLimit"].startswith('"key_requests";r=0')
    clock.forward(4)
    admission.check(late)
    assert admission.refused == {"key_concurrency": 1, "key_requests": 1}


async def test_the_21st_of_20_at_once_is_refused_and_others_are_not(admission, policies):
    await policies.set_tier("default", Limits(concurrency=20))
    permits, kinds = await enter_many(admission, 21)
    assert (len(permits), kinds) == (20, {RateLimited: 1})
    others, refused = await enter_many(admission, 20, make_principal("other"))
    assert (len(others), refused) == (20, {})
    permit, call = permits[0]
    for _ in range(5):  # given back once, however often it is asked
        permit.leave(call)
    permits, kinds = await enter_many(admission, 3)
    assert (len(permits), kinds) == (1, {RateLimited: 2})


async def test_tokens_and_pixels_count(admission, policies):
    await policies.set_tier("default", Limits(tokens_per_minute=100, pixels_per_minute=1000))
    permits, kinds = await enter_many(admission, 5, tokens=40)
    assert (len(permits), kinds) == (2, {RateLimited: 3})
    permits, kinds = await enter_many(admission, 5, pixels=400)
    assert (len(permits), kinds) == (2, {RateLimited: 3})
    with pytest.raises(TooLarge):
        await admission.enter(admitted_call(make_principal(), tokens=101))


async def test_every_level_counts_and_the_tightest_wins(admission, policies, keys):
    issued = await keys.create(KeySpec("web"))
    await policies.set_rule("model", "qa", Limits(requests_per_second=7))
    await policies.set_rule("project", "web", Limits(requests_per_second=5))
    await policies.set_rule("organisation", "acme", Limits(requests_per_second=9))
    await policies.set_tier("slow", Limits(requests_per_second=3))
    await policies.set_rule("key", issued.key.key_id, Limits(requests_per_second=2))
    key = make_principal(issued.key.key_id, tier="slow")
    assert len((await enter_many(admission, 20, key, model="qa"))[0]) == 2
    assert len((await enter_many(admission, 20, make_principal("b", tier="slow"), model="qa"))[0]) == 3
    assert len((await enter_many(admission, 20, make_principal("c", project="shop"), model="qa"))[0]) == 2
    assert len((await enter_many(admission, 20, make_principal("c", project="shop"), model="sentiment"))[0]) == 2


async def test_an_unknown_tier_is_the_default(admission, policies):
    await policies.set_tier("default", Limits(requests_per_second=2))
    assert len((await enter_many(admission, 9, make_principal(tier="gone")))[0]) == 2
    await policies.remove_tier("default")
    assert len((await enter_many(admission, 9, make_principal(tier="gone")))[0]) == 9
    with pytest.raises(NotFound):
        await policies.remove_tier("default")


async def test_a_change_made_elsewhere_arrives(admission, policies, store, audit):
    other = Policies(store, audit)
    await other.set_tier("default", Limits(requests_per_second=1))
    assert policies.current.tiers == {}
    with statements(store) as seen:
        await policies.refresh()
        first = len(seen)
        await policies.refresh()  # nothing changed: one row is read
    assert policies.current.tier("default").requests_per_second == 1
    assert len(seen) - first < first
    assert len((await enter_many(admission, 9))[0]) == 1


async def test_a_budget_refused_gives_the_places_back(admission, policies, keys):
    await policies.set_tier("default", Limits(concurrency=1))
    await policies.set_budget(Budget("project", "web", "day", 10))
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await admission.enter(admitted_call(make_principal(), cost_usd=1.0))


async def test_the_estimate_is_what_is_reserved(policies, budgets, keys):
    admission = Admission(policies, budgets, estimate=lambda _model, units: (0, units.tokens * 1e-3))
    await policies.set_budget(Budget("project", "web", "day", PICO))
    permits, kinds = await enter_many(admission, 10, tokens=300)
    assert (len(permits), kinds) == (3, {BudgetExceeded: 7})
    for permit, call in permits:
        call.estimated_cost_usd = 0.1  # what it came to
        permit.leave(call)
    permits, kinds = await enter_many(admission, 10, tokens=300)
    assert len(permits) == 2


async def test_priority_and_deadline_belong_to_tiers(admission, policies):
    await policies.set_tier("gold", Limits(max_priority=5, max_timeout_s=60))
    limits = admission.limits_of(make_principal(tier="gold"))
    assert (limits.max_priority, limits.max_timeout_s) == (5, 60)
    with pytest.raises(Invalid):
        await policies.set_rule("model", "qa", Limits(max_priority=1))


@pytest.mark.parametrize("level", ["key", "project", "organisation"])
async def test_rules_and_budgets_need_their_subject(policies, level):
    with pytest.raises(NotFound):
        await policies.set_rule(level, "nobody", Limits(concurrency=1))
    with pytest.raises(NotFound):
        await policies.set_budget(Budget(level, "nobody", "day", 1))
    with pytest.raises(NotFound):
        await policies.remove_budget(level, "nobody", "day")


async def test_changes_are_audited(policies, keys, audit):
    await policies.set_tier("gold", Limits(concurrency=2))
    await policies.set_rule("project", "web", Limits(concurrency=2))
    await policies.set_budget(Budget("project", "web", "month", 5))
    await policies.remove_budget("project", "web", "month")
    await policies.remove_rule("project", "web")
    await policies.remove_tier("gold")
    actions = [(record.action, record.object) for record in await audit.records()][1:]
    assert actions == [
        ("tier.set", "gold"),
        ("limit.set", "project/web"),
        ("budget.set", "project/web/month"),
        ("budget.remove", "project/web/month"),
        ("limit.remove", "project/web"),
        ("tier.remove", "gold"),
    ]


@pytest.mark.redis
async def test_two_gateways_share_and_fall_back_to_their_share(policies, budgets, redis_server, clock):
    await policies.set_tier("default", Limits(requests_per_second=0.0001, burst=40))
    gateways = []
    for name in ("one", "two"):
        shared = SharedLimiter(redis_server.url, name, timeout_s=20.0)
        await shared.start()
        gateways.append((shared, Admission(policies, budgets, shared=shared, clock=clock)))
    try:
        for shared, _ in gateways:
            await shared._beat()
        passed = [len((await enter_many(admission, 60))[0]) for _, admission in gateways]
        assert sum(passed) == 40
        redis_server.stop()
        passed = [len((await enter_many(admission, 60))[0]) for _, admission in gateways]
        assert passed == [20, 20]  # neither open nor closed
        assert all(admission.fallbacks == 60 for _, admission in gateways)
    finally:
        for shared, _ in gateways:
            await shared.stop()


async def test_permits_survive_a_change_of_policy(admission, policies):
    await policies.set_tier("default", Limits(concurrency=2))
    permits, _ = await enter_many(admission, 2)
    await policies.set_tier("default", Limits(requests_per_second=100))
    for permit, call in permits:
        permit.leave(call)
    await policies.set_tier("default", Limits(concurrency=2))
    assert len((await enter_many(admission, 5))[0]) == 2
