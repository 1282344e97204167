from __future__ import annotations

import asyncio
import base64
import socket
from collections import Counter

import pytest

from gateway.access import keyformat
from gateway.access.audit import Audit
from gateway.access.authenticator import Authenticator
from gateway.access.key import KeySpec
from gateway.access.keys import Keys
from gateway.access.oidc import TokenVerifier
from gateway.access.throttle import Refusals
from gateway.errors import Forbidden, GatewayError, RateLimited, Unauthenticated, Unavailable
from gateway.settings import Settings
from gateway.store.database import Store
from tests.gateway.access.support import Clock, make_call, statements


@pytest.fixture
async def authenticator(keys, settings, audit, clock, wall):
    authenticator = Authenticator(keys, settings, refusals=Refusals(audit), clock=clock, wall_clock=wall)
    yield authenticator
    await authenticator.stop()


def forward(seconds: float, *clocks: Clock) -> None:
    for clock in clocks:
        clock.forward(seconds)


async def settle(authenticator: Authenticator) -> None:
    """Let background look-ups land."""
    while authenticator._flights:
        await asyncio.gather(*authenticator._flights.values(), return_exceptions=True)


async def outcome(authenticator: Authenticator, credential: str | None, address: str = "192.0.2.1"):
    try:
        return await authenticator.authenticate(make_call(credential, address))
    except GatewayError as error:
        return type(error), error.message, error.headers


async def test_a_key_in_use_costs_no_statement(authenticator, keys, store):
    issued = await keys.create(KeySpec("web"))
    principal = await authenticator.authenticate(make_call(issued.text))
    with statements(store) as seen:
        for _ in range(100):
            assert await authenticator.authenticate(make_call(issued.text)) == principal
    assert seen == []
    assert authenticator.lookups == 1


MALFORMED = (
    "", "x", "' OR 1=1--", "tg_live_\0", "é" * 60, "\udcff" * 60, "a" * 65536, "eyJhbGciOiJub25lIn0.e30.",
    "tg_live_0123456789AB_abcdefghijklmnopqrstuvwxyz012345_000000",
)  # fmt: skip


async def test_a_malformed_key_reaches_no_database(authenticator, store):
    with statements(store) as seen:
        for credential in MALFORMED:
            assert (await outcome(authenticator, credential))[0] is Unauthenticated
    assert seen == []


async def test_every_refusal_reads_the_same(authenticator, keys, wall):
    expired = await keys.create(KeySpec("web", expires_at=wall() + 1))
    revoked = await keys.create(KeySpec("web"))
    await keys.revoke(revoked.key.key_id)
    wall.forward(2)
    texts = [None, "nonsense", keyformat.generate("0" * 12, test=False).text, expired.text, revoked.text]
    answers = [await outcome(authenticator, text, f"192.0.2.{number}") for number, text in enumerate(texts)]
    assert answers == [answers[0]] * len(texts)
    assert answers[0][0] is Unauthenticated
    assert answers[0][2]["WWW-Authenticate"].startswith("Bearer")


async def test_known_and_unknown_keys_cost_the_same_statements(authenticator, keys, store):
    issued = await keys.create(KeySpec("web"))
    counts = []
    for text in (issued.text, keyformat.generate(issued.key.key_id, test=False).text,
                 keyformat.generate("0" * 12, test=False).text):  # fmt: skip
        with statements(store) as seen:
            await outcome(authenticator, text)
        counts.append(len(seen))
    assert counts == [counts[0]] * 3


async def test_a_key_revoked_elsewhere_is_refused_within_the_bound(authenticator, keys, store, settings, audit, clock):
    issued = await keys.create(KeySpec("web"))
    await authenticator.authenticate(make_call(issued.text))
    other_gateway = type(keys)(store, audit, settings, clock=keys._clock)
    await other_gateway.revoke(issued.key.key_id)
    clock.forward(settings.key_cache_ttl_s)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(make_call(issued.text))


@pytest.fixture
def away(settings, keys):
    """A verifier of tokens whose provider does not answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        issuer = f"http://127.0.0.1:{probe.getsockname()[1]}"
        update = {"oidc_issuer": issuer, "oidc_audience": "tidegate"}
        yield TokenVerifier(settings.model_copy(update=update), keys)


def some_token(number: int = 0) -> str:
    """Anybody's: well-formed, and signed by nobody that the gateway trusts."""
    header = base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"%d"}' % number).decode().rstrip("=")
    return f"{header}.e30.c2ln"


async def test_a_provider_that_is_away_stretches_no_keys_revocation(keys, store, settings, audit, away, clock, wall):
    authenticator = Authenticator(keys, settings, tokens=away, clock=clock, wall_clock=wall)
    issued = await keys.create(KeySpec("web"))
    await authenticator.authenticate(make_call(issued.text))
    await type(keys)(store, audit, settings, clock=wall).revoke(issued.key.key_id)
    clock.forward(settings.key_cache_ttl_s)
    with pytest.raises(Unavailable):
        await authenticator.authenticate(make_call(some_token()))
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(make_call(issued.text))
    assert authenticator.stale == 0
    await authenticator.stop()


async def test_tokens_that_nobody_answers_for_hold_no_slot_of_the_keys(keys, settings, clock, wall):
    released = asyncio.Event()

    class Silent:
        async def verify(self, _token: str) -> None:
            await released.wait()

    authenticator = Authenticator(keys, settings, tokens=Silent(), clock=clock, wall_clock=wall)
    calls = [
        asyncio.create_task(outcome(authenticator, some_token(number), f"192.0.2.{number}")) for number in range(64)
    ]
    issued = await keys.create(KeySpec("web"))
    assert await authenticator.authenticate(make_call(issued.text))
    released.set()
    await asyncio.gather(*calls)
    await authenticator.stop()


async def test_tokens_that_nobody_answers_for_are_throttled(keys, settings, away, clock, wall):
    authenticator = Authenticator(keys, settings, tokens=away, clock=clock, wall_clock=wall)
    kinds = Counter([(await outcome(authenticator, some_token(number)))[0] for number in range(100)])
    assert set(kinds) == {Unavailable, RateLimited}
    assert 15 <= kinds[Unavailable] <= 30
    issued = await keys.create(KeySpec("web"))
    clock.forward(1)
    assert await authenticator.authenticate(make_call(issued.text))  # a neighbour with a key gets in
    await authenticator.stop()


async def test_a_key_revoked_here_is_refused_at_once(authenticator, keys):
    issued = await keys.create(KeySpec("web"))
    await authenticator.authenticate(make_call(issued.text))
    await keys.revoke(issued.key.key_id)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(make_call(issued.text))


async def test_after_the_bound_no_call_passes_under_load(authenticator, keys, store, settings, audit, clock):
    issued = await keys.create(KeySpec("web"))
    other_gateway = type(keys)(store, audit, settings, clock=keys._clock)
    passed_after = 0
    revoked_at = None
    for step in range(400):
        clock.forward(0.05)
        if step == 100:
            await other_gateway.revoke(issued.key.key_id)
            revoked_at = clock()
        try:
            await authenticator.authenticate(make_call(issued.text))
        except (Unauthenticated, RateLimited):
            continue
        if revoked_at is not None and clock() > revoked_at + settings.key_cache_ttl_s:
            passed_after += 1
    assert passed_after == 0
    assert revoked_at is not None


async def test_a_key_in_use_is_looked_up_again_in_the_background(authenticator, keys, settings, clock):
    issued = await keys.create(KeySpec("web"))
    await authenticator.authenticate(make_call(issued.text))
    clock.forward(settings.key_cache_ttl_s / 2)
    await authenticator.authenticate(make_call(issued.text))
    assert len(authenticator._flights) == 1
    await settle(authenticator)
    clock.forward(settings.key_cache_ttl_s * 0.9)
    await authenticator.authenticate(make_call(issued.text))  # fresh still: it never waited
    assert authenticator.lookups == 2


async def test_of_many_calls_at_once_one_looks_the_key_up(authenticator, keys):
    issued = await keys.create(KeySpec("web"))
    calls = [authenticator.authenticate(make_call(issued.text)) for _ in range(200)]
    assert len(set(await asyncio.gather(*calls))) == 1
    assert authenticator.lookups == 1


async def test_however_many_calls_meet_an_expiry_each_key_is_looked_up_once(authenticator, keys, settings, clock):
    issued = [(await keys.create(KeySpec("web"))).text for _ in range(5)]

    async def stampede() -> None:
        await asyncio.gather(*(authenticator.authenticate(make_call(text)) for text in issued * 200))
        await settle(authenticator)

    for expiry in range(1, 5):
        await stampede()
        await stampede()  # fresh: nobody is asked
        assert authenticator.lookups == len(issued) * expiry
        clock.forward(settings.key_cache_ttl_s)
    # Half-way to the next one the keys are looked up beside the calls, once each too.
    await stampede()
    clock.forward(settings.key_cache_ttl_s * 0.6)
    await stampede()
    await stampede()
    assert authenticator.lookups == len(issued) * 6


async def test_a_call_that_goes_away_takes_no_other_with_it(authenticator, keys):
    issued = await keys.create(KeySpec("web"))
    first = asyncio.create_task(authenticator.authenticate(make_call(issued.text)))
    await asyncio.sleep(0)
    second = asyncio.create_task(authenticator.authenticate(make_call(issued.text)))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).key_id == issued.key.key_id
    assert first.cancelled()


async def test_a_secret_ends_with_its_overlap_even_while_remembered(authenticator, keys, clock, wall):
    issued = await keys.create(KeySpec("web"))
    await keys.rotate(issued.key.key_id, overlap_s=2)
    await authenticator.authenticate(make_call(issued.text))
    forward(2, clock, wall)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(make_call(issued.text))


async def test_a_wall_clock_stepped_back_revives_no_key(authenticator, keys, clock, wall):
    issued = await keys.create(KeySpec("web", expires_at=wall() + 2))
    await authenticator.authenticate(make_call(issued.text))
    clock.forward(3)
    wall.forward(-3600)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(make_call(issued.text))


ADDRESSES = {
    "10.1.2.3": True, "::ffff:10.1.2.3": True, "2001:db8::7": True, "192.0.2.1": False, "": False,
    "2001:db8:1::7": False, "garbage": False,
}  # fmt: skip


async def test_a_key_may_be_bound_to_networks(authenticator, keys):
    issued = await keys.create(KeySpec("web", addresses=("10.0.0.0/8", "2001:db8::/48")))
    for address, allowed in [*ADDRESSES.items()] * 2:  # looked up, and remembered
        result = await outcome(authenticator, issued.text, address)
        assert (result == issued.key.principal()) is allowed
        assert allowed or result[0] is Forbidden


async def test_brute_force_is_401_then_429_and_others_go_on(authenticator, keys, store):
    tenant = await keys.create(KeySpec("web"))
    neighbour = await keys.create(KeySpec("web"))
    await authenticator.authenticate(make_call(neighbour.text, "198.51.100.1"))
    kinds = Counter()
    with statements(store) as seen:
        for _ in range(1000):
            result = await outcome(authenticator, keyformat.generate("0" * 12, test=False).text, "198.51.100.1")
            kinds[result[0]] += 1
    assert set(kinds) == {Unauthenticated, RateLimited}
    assert 15 <= kinds[Unauthenticated] <= 30
    assert len(seen) < 200  # a trickle reaches the database
    assert await authenticator.authenticate(make_call(tenant.text, "192.0.2.1"))
    assert await authenticator.authenticate(make_call(neighbour.text, "198.51.100.1"))
    with pytest.raises(RateLimited) as refusal:
        await authenticator.authenticate(make_call("nonsense", "198.51.100.1"))
    assert refusal.value.retry_after_s >= 1


async def test_who_shares_the_attackers_address_gets_in_with_a_new_key(authenticator, keys, clock):
    issued = await keys.create(KeySpec("web"))
    for _ in range(100):
        await outcome(authenticator, "nonsense", "198.51.100.1")
    assert await authenticator.authenticate(make_call(issued.text, "198.51.100.1"))


async def test_memory_is_bounded(keys, settings, clock):
    small = Authenticator(keys, settings.model_copy(update={"key_cache_size": 10}), clock=clock)
    for number in range(30):
        await outcome(small, keyformat.generate(f"{number:012}", test=False).text, f"192.0.2.{number}")
        await small.authenticate(make_call((await keys.create(KeySpec("web"))).text))
    assert len(small._entries) == len(small._refused) == 10
    await small.stop()


async def test_refusals_and_last_use_are_written(authenticator, keys, audit, wall):
    issued = await keys.create(KeySpec("web"))
    await authenticator.start()
    await authenticator.authenticate(make_call(issued.text))
    await outcome(authenticator, "nonsense")
    await authenticator.stop()
    assert (await keys.get(issued.key.key_id)).last_used_at == wall()
    last = (await audit.records())[-1]
    assert (last.action, last.object, last.details) == ("auth.refused", "192.0.2.1", '{"invalid":1}')


@pytest.mark.database
async def test_the_database_away(tmp_path, own_postgresql, clock, wall):
    settings = Settings(data_dir=tmp_path, database_url=own_postgresql.create_database())
    store = await Store.open(settings)
    keys = await Keys(store, Audit(store, settings), settings, clock=wall).open()
    await keys.ensure_project("web", "acme")
    used = await keys.create(KeySpec("web"))
    unused = await keys.create(KeySpec("web"))
    authenticator = Authenticator(keys, settings, clock=clock, wall_clock=wall)
    await authenticator.authenticate(make_call(used.text))
    own_postgresql.stop()
    try:
        with pytest.raises(Unavailable) as refusal:  # never seen: fails closed
            await authenticator.authenticate(make_call(unused.text))
        assert refusal.value.retry_after_s
        clock.forward(settings.key_outage_ttl_s - 1)
        assert (await authenticator.authenticate(make_call(used.text))).key_id == used.key.key_id
        assert authenticator.stale == 1
        clock.forward(1)
        with pytest.raises(Unavailable):  # too long ago to be trusted
            await authenticator.authenticate(make_call(used.text))
        with pytest.raises(Unauthenticated):  # a mistyped key needs no database to be refused
            await authenticator.authenticate(make_call("nonsense"))
        own_postgresql.start()
        clock.forward(2)
        assert await authenticator.authenticate(make_call(used.text))
        assert await authenticator.authenticate(make_call(unused.text))
    finally:
        await authenticator.stop()
        await store.close()
