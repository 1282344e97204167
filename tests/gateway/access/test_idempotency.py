"""Idempotency keys over a real store, on both databases: reserved, answered again, given back, purged."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
import uuid_utils

from gateway.access.idempotency import MAX_KEY_CHARS, Answer, Idempotency
from gateway.errors import AnswerLost, Forbidden, InProgress, KeyReused, Malformed, Unavailable
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.tables import idempotency_keys
from gateway.store.usage import write
from gateway.types import Call
from tests.gateway.access.support import make_principal
from tests.gateway.ledger.support import make_record

ASKED = (b"POST", b"/v1/embeddings", b'{"input": "a"}')
OTHER = (b"POST", b"/v1/embeddings", b'{"input": "b"}')
ANSWER = Answer(200, b"\x00\xff body", {"X-Extra": "1"}, "application/json")
DAY_S = 86_400.0


@pytest.fixture
def keys(store, settings, wall):
    return Idempotency(store, settings, clock=wall)


def make_call(key="order-1", *, model="m", **principal):
    usage_id = str(uuid_utils.uuid7())
    return Call(
        usage_id,
        usage_id,
        "openai",
        "embeddings",
        idempotency_key=key,
        model=model,
        principal=make_principal(**principal),
    )


async def ask(keys, call, asked=ASKED):
    """What a call goes through before its work: the answer given before, or the key reserved."""
    before = await keys.begin(call, asked)
    if before is None:
        await call.reserve_key()
    return before


async def answered(keys, call=None, answer=ANSWER, asked=ASKED):
    call = call or make_call()
    assert await ask(keys, call, asked) is None
    await keys.keep(call, answer)
    return call


async def rows(store):
    async with store.read() as connection:
        return (await connection.execute(sa.select(idempotency_keys))).all()


async def record(store, call, state):
    async with store.write() as connection:
        await write(connection, [make_record(usage_id=call.usage_id, project="web", state=state, settled=True)])


async def test_the_same_request_gets_the_same_answer(keys):
    first = await answered(keys)
    again = make_call(model="")
    reply = await ask(keys, again, ASKED)
    assert (reply.status, reply.body, reply.media_type) == (200, ANSWER.body, "application/json")
    assert reply.headers == {"X-Extra": "1", "Idempotent-Replayed": "true"}
    assert (again.usage_id, again.model) == (first.usage_id, "m")
    assert first.idempotent
    assert not again.idempotent
    assert keys.outcomes["executed"] == keys.outcomes["replayed"] == 1


async def test_it_does_so_after_a_restart_and_at_another_gateway(keys, settings, wall):
    await answered(keys)
    other = await Store.open(settings)
    try:
        assert (await ask(Idempotency(other, settings, clock=wall), make_call())).body == ANSWER.body
    finally:
        await other.close()


async def test_another_request_under_the_same_key_is_refused(keys):
    await answered(keys)
    with pytest.raises(KeyReused):
        await ask(keys, make_call(), OTHER)
    assert await ask(keys, make_call("order-2"), ASKED) is None
    with pytest.raises(KeyReused):  # while it is in progress too
        await ask(keys, make_call("order-2"), OTHER)


async def test_where_one_part_ends_and_the_next_begins_counts(keys):
    await answered(keys, asked=(b"ab", b"c"))
    with pytest.raises(KeyReused):
        await ask(keys, make_call(), (b"a", b"bc"))


async def test_a_duplicate_meanwhile_is_told_to_wait(keys):
    assert await ask(keys, make_call(), ASKED) is None
    with pytest.raises(InProgress) as caught:
        await ask(keys, make_call(), ASKED)
    assert (caught.value.status, caught.value.retry_after_s) == (409, 1.0)


async def test_of_many_at_once_one_is_executed(keys, settings, store, wall):
    gateways = [keys, *(Idempotency(store, settings, clock=wall) for _ in range(3))]
    calls = [make_call() for _ in range(20)]
    results = await asyncio.gather(
        *(ask(gateways[number % 4], call, ASKED) for number, call in enumerate(calls)), return_exceptions=True
    )
    assert results.count(None) == 1
    assert sum(isinstance(result, InProgress) for result in results) == 19
    assert [row.usage_id for row in await rows(store)] == [calls[results.index(None)].usage_id]


async def test_projects_and_test_keys_have_keys_of_their_own(keys):
    await answered(keys)
    for principal in ({"project": "shop"}, {"test": True}, {"project": "shop", "test": True}):
        assert await ask(keys, make_call(**principal), OTHER) is None
    assert (await ask(keys, make_call(key_id="another"), ASKED)).body == ANSWER.body


async def test_an_answer_is_not_shown_to_a_key_that_may_not_use_its_model(keys):
    await answered(keys)
    with pytest.raises(Forbidden):
        await ask(keys, make_call(models=frozenset({"other"})), ASKED)
    assert await ask(keys, make_call(models=frozenset({"m"})), ASKED) is not None


async def test_keys_that_are_none_are_refused(keys, store):
    for key in ("", " ", "\t", "x" * (MAX_KEY_CHARS + 1), "ä", "a\nb", "a\x7f", "a\x00"):
        with pytest.raises(Malformed):
            await ask(keys, make_call(key), ASKED)
    assert await rows(store) == []


async def test_any_other_key_is_taken(keys):
    for key in ("x", "x" * MAX_KEY_CHARS, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b", "'; DROP"):
        await answered(keys, make_call(key))
        assert (await ask(keys, make_call(key), ASKED)).body == ANSWER.body


async def test_what_is_no_success_is_not_kept(keys, store):
    for status in (400, 404, 422, 429, 500, 502, 503, 504):
        call = make_call()
        await ask(keys, call, ASKED)
        await keys.keep(call, Answer(status, b"no"))
        assert await rows(store) == []
    assert await ask(keys, make_call(), OTHER) is None


async def test_a_key_given_back_is_new(keys, store):
    call = make_call()
    await ask(keys, call, ASKED)
    await keys.release(call)
    await keys.release(call)
    assert await rows(store) == []
    assert await ask(keys, make_call(), OTHER) is None


async def test_giving_back_does_not_touch_a_successor(keys, store, wall, settings):
    late = make_call()
    await ask(keys, late, ASKED)
    wall.forward(settings.idempotency_keep_s + 1)
    successor = make_call()
    assert await ask(keys, successor, ASKED) is None
    await keys.release(late)
    await keys.keep(late, ANSWER)
    (row,) = await rows(store)
    assert (row.usage_id, row.status) == (successor.usage_id, 0)


async def test_it_is_kept_for_a_day_and_then_new(keys, wall, store):
    await answered(keys)
    wall.forward(DAY_S - 1)
    assert await ask(keys, make_call(), ASKED) is not None
    assert await keys.purge() == 0
    wall.forward(2)
    assert await ask(keys, make_call(), OTHER) is None
    assert len(await rows(store)) == 1


async def test_old_keys_are_purged_in_batches(keys, wall, store, monkeypatch):
    monkeypatch.setattr("gateway.access.idempotency._PURGE_ROWS", 3)
    for number in range(8):
        await answered(keys, make_call(f"old-{number}"))
        wall.forward(1)
    wall.forward(DAY_S - 4)
    await answered(keys, make_call("new"))
    assert keys.stored_bytes == 9 * len(ANSWER.body)
    assert await keys.purge() == 5
    assert sorted(row.name for row in await rows(store)) == ["new", "old-5", "old-6", "old-7"]
    assert keys.stored_bytes == 4 * len(ANSWER.body)


async def test_purging_runs_in_the_background(keys, wall, store):
    await answered(keys)
    wall.forward(DAY_S + 1)
    await keys.start()
    try:
        await asyncio.wait_for(none_left(store), 20)
    finally:
        await keys.stop()


async def none_left(store):
    while await rows(store):  # noqa: ASYNC110 - it is the database that changes
        await asyncio.sleep(0.01)


async def test_nothing_is_written_before_the_work_begins(keys, store):
    """What is refused for its form or over a limit costs the database one reading."""
    call = make_call()
    assert await keys.begin(call, ASKED) is None
    await keys.release(call)
    await keys.keep(call, ANSWER)
    assert await rows(store) == []
    assert keys.outcomes["released"] == keys.outcomes["executed"] == 0


async def test_of_two_that_saw_a_free_key_one_gets_it(keys):
    first, second = make_call(), make_call()
    assert [await keys.begin(call, ASKED) for call in (first, second)] == [None, None]
    await second.reserve_key()
    with pytest.raises(InProgress):
        await first.reserve_key()
    await keys.release(first)  # is not its to give back
    with pytest.raises(InProgress):
        await ask(keys, make_call())
    await keys.keep(second, ANSWER)
    assert await ask(keys, make_call()) is not None


# --- bounds


@pytest.mark.parametrize(
    "values", [{"idempotency_max_body_bytes": 4}, {"idempotency_max_stored_bytes": 4}], ids=["one", "all"]
)
async def test_an_answer_over_the_bound_is_given_once_and_never_executed_again(store, settings, wall, values):
    keys = Idempotency(store, settings.model_copy(update=values), clock=wall)
    await answered(keys, answer=Answer(200, b"12345"))
    with pytest.raises(AnswerLost) as caught:
        await ask(keys, make_call(), ASKED)
    assert caught.value.status == 409
    assert caught.value.headers == {"X-Should-Retry": "false"}
    (row,) = await rows(store)
    assert (row.body, row.body_bytes, row.status) == (None, 0, 200)
    assert keys.outcomes["not_kept"] == 1
    await answered(keys, make_call("small"), Answer(200, b"1234"))
    assert (await ask(keys, make_call("small"), ASKED)).body == b"1234"


async def test_an_empty_answer_is_an_answer(keys):
    await answered(keys, answer=Answer(200, b""))
    assert (await ask(keys, make_call(), ASKED)).body == b""


async def test_a_large_request_is_told_from_another(keys):
    large = b"x" * (3 * 2**20)
    await answered(keys, asked=(large, b"a"))
    assert await ask(keys, make_call(), (large, b"a")) is not None
    with pytest.raises(KeyReused):
        await ask(keys, make_call(), (large, b"b"))


# --- a gateway that died


async def test_a_reservation_without_an_end_is_never_executed_again(keys, wall, settings):
    await ask(keys, make_call(), ASKED)
    wall.forward(settings.max_timeout_s + 30)
    with pytest.raises(InProgress):
        await ask(keys, make_call(), ASKED)
    wall.forward(60)  # no call can be running any more
    for _ in range(2):
        with pytest.raises(AnswerLost):
            await ask(keys, make_call(), ASKED)
    with pytest.raises(KeyReused):
        await ask(keys, make_call(), OTHER)
    wall.forward(DAY_S)
    assert await ask(keys, make_call(), ASKED) is None


@pytest.mark.parametrize("state", ["unknown", "completed"])
async def test_the_ledger_says_earlier_that_a_gateway_died(keys, store, state):
    call = make_call()
    await ask(keys, call, ASKED)
    await record(store, call, "reserved")
    with pytest.raises(InProgress):
        await ask(keys, make_call(), ASKED)
    await record(store, call, state)
    with pytest.raises(AnswerLost):
        await ask(keys, make_call(), ASKED)


@pytest.mark.parametrize("state", ["failed", "client_closed"])
async def test_a_call_that_ended_without_an_answer_does_not_hold_its_key(keys, store, state):
    """Its gateway could not give the key back: the database was away."""
    call = make_call()
    await ask(keys, call, ASKED)
    await record(store, call, state)
    results = await asyncio.gather(*(ask(keys, make_call(), OTHER) for _ in range(5)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, InProgress) for result in results) == 4


# --- the database is away


@pytest.fixture
async def own_store(tmp_path, own_postgresql):
    settings = Settings(data_dir=tmp_path, database_url=own_postgresql.create_database())
    store = await Store.open(settings)
    yield store, settings
    await store.close()


@pytest.mark.database
async def test_without_the_database_nothing_is_executed_under_a_key(own_store, own_postgresql):
    store, settings = own_store
    keys = Idempotency(store, settings)
    own_postgresql.stop()
    with pytest.raises(Unavailable):
        await ask(keys, make_call(), ASKED)
    own_postgresql.start()
    await answered(keys)


@pytest.mark.database
async def test_an_answer_that_could_not_be_kept_is_lost_and_told_so(own_store, own_postgresql):
    store, settings = own_store
    keys = Idempotency(store, settings)
    call = make_call()
    await ask(keys, call, ASKED)
    own_postgresql.stop()
    await keys.keep(call, ANSWER)  # the caller gets it all the same
    assert keys.outcomes["not_kept"] == 1
    own_postgresql.start()
    await record(store, call, "completed")
    with pytest.raises(AnswerLost):
        await ask(keys, make_call(), ASKED)


@pytest.mark.database
async def test_a_key_that_could_not_be_given_back_is_given_back_later(own_store, own_postgresql):
    store, settings = own_store
    keys = Idempotency(store, settings)
    call = make_call()
    await ask(keys, call, ASKED)
    own_postgresql.stop()
    await keys.release(call)
    own_postgresql.start()
    await keys.start()
    try:
        await asyncio.wait_for(none_left(store), 30)
    finally:
        await keys.stop()
    assert await ask(keys, make_call(), ASKED) is None


# --- migrations


async def test_the_migration_goes_down_and_up(store, keys):
    await answered(keys)
    await store.migrate("0002")
    async with store.read() as connection:
        names = await connection.run_sync(lambda sync: set(sa.inspect(sync).get_table_names()))
    assert "idempotency_keys" not in names
    await store.migrate()
    assert await rows(store) == []


# --- all of it


class Books:
    """Closes calls, and can fail to."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.closed = []

    async def close(self, call):
        if self.failures:
            raise self.failures.pop()
        self.closed.append(call.usage_id)


def working(call, answer=ANSWER, error=None):
    """Work as the pipeline does it: the key is reserved once the call is admitted."""

    async def work():
        await call.reserve_key()
        if error is not None:
            raise error
        return answer

    return work


async def test_the_work_is_done_once(keys):
    books, first, again = Books(), make_call(), make_call()
    assert await keys.once(first, ASKED, working(first), books.close) == ANSWER
    assert (await keys.once(again, ASKED, working(again), books.close)).body == ANSWER.body
    assert books.closed == [first.usage_id]
    assert first.bytes_out == len(ANSWER.body)


@pytest.mark.parametrize("error", [Unavailable("no"), ValueError("no"), asyncio.CancelledError()], ids=repr)
async def test_whatever_ends_the_work_frees_the_key(keys, store, error):
    call = make_call()
    with pytest.raises(type(error)):
        await keys.once(call, ASKED, working(call, error=error), Books().close)
    assert await rows(store) == []


async def test_an_answer_that_cannot_be_recorded_is_never_given(keys, store):
    books, call = Books(Unavailable("the journal is full")), make_call()
    with pytest.raises(Unavailable):
        await keys.once(call, ASKED, working(call), books.close)
    assert await rows(store) == []


async def test_an_answer_whose_client_left_while_it_was_recorded_is_kept(keys):
    books, call = Books(asyncio.CancelledError()), make_call()
    with pytest.raises(asyncio.CancelledError):
        await keys.once(call, ASKED, working(call), books.close)
    assert (await keys.begin(make_call(), ASKED)).body == ANSWER.body
