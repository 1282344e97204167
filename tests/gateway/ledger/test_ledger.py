"""The ledger as the pipeline sees it, on a real store."""

import asyncio
import os
import resource

import pytest

from gateway.errors import Unavailable
from gateway.ledger.flusher import DAMAGED
from gateway.ledger.journal import SUFFIX
from gateway.ledger.ledger import Ledger
from gateway.ledger.null import NullLedger
from gateway.store.database import Store
from gateway.store.usage_daily import rebuild_daily
from gateway.types import Units
from tests.gateway.ledger.support import (
    CountingTriton,
    abandon,
    fetch,
    make_call,
    make_prices,
    make_principal,
    make_settings,
    serve,
    until,
)

STATES = "SELECT state, count(*) FROM usage_records GROUP BY state ORDER BY state"


async def row(store, call):
    query = "SELECT * FROM usage_records WHERE usage_id = :usage_id"
    (found,) = await fetch(store, query, usage_id=call.usage_id)
    return found._mapping


def journals(settings):
    root = settings.data_dir / "journal"
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


async def test_from_call_to_row(make_ledger, store, triton):
    ledger = await make_ledger()
    call = make_call(tokens=12, rows=2)
    await ledger.reserve(call)
    call.units = Units(tokens=16, rows=2)
    await ledger.finish(call, "completed", 200)
    triton.infer("sentiment", 2, compute_ns=1000, queue_ns=50)
    await ledger.stop()
    found = await row(store, call)
    assert (found["state"], found["status"], found["tokens"], found["rows"]) == ("completed", 200, 16, 2)
    assert (found["compute_ns"], found["queue_ns"], found["cost_pico_usd"]) == (1000, 50, 100)
    assert (found["billed_pico_usd"], found["basis"], found["prices_version"]) == (100, "measured", "test")
    assert (found["project"], found["key_id"], found["organisation"]) == ("project", "key", "organisation")
    assert (found["bytes_in"], found["bytes_out"], found["error"]) == (100, 200, None)
    assert found["total_ns"] > 0
    assert found["gateway_id"] == ledger.gateway_id
    counters = ledger.counters
    assert (counters.tokens, counters.cost_pico_usd, counters.billed_pico_usd) == (
        {"sentiment": 16},
        {"sentiment": 100},
        {"sentiment": 100},
    )


async def test_it_writes_by_itself(make_ledger, store):
    ledger = await make_ledger(interval_s=0.02)
    call = await serve(ledger)
    await until(lambda: fetch(store, "SELECT 1 FROM usage_records WHERE state = 'completed'"))
    assert (await row(store, call))["state"] == "completed"
    assert ledger.metered == 1


async def test_a_call_still_in_flight_is_in_the_database_and_changes_there(make_ledger, store):
    ledger = await make_ledger()
    call = make_call()
    await ledger.reserve(call)
    await ledger.flush()
    assert (await row(store, call))["state"] == "reserved"
    await ledger.finish(call, "client_closed", 499, "client_closed")
    await ledger.flush()
    assert (await row(store, call))["state"] == "client_closed"
    assert ledger.metered == 1


@pytest.mark.parametrize("state", ["failed", "client_closed"])
async def test_what_did_not_complete_is_recorded_and_not_billed(make_ledger, store, triton, state):
    ledger = await make_ledger()
    call = await serve(ledger, state, 502, "bad_upstream", tokens=9)
    triton.infer("sentiment", 1)
    await ledger.stop()
    found = await row(store, call)
    assert (found["state"], found["status"], found["error"]) == (state, 502, "bad_upstream")
    assert found["billed_pico_usd"] == found["cost_pico_usd"] == 0
    assert found["settled"]


async def test_a_client_that_left_when_a_part_was_delivered_owes_the_estimate(make_ledger, store):
    ledger = await make_ledger()
    call = make_call(tokens=9)
    await ledger.reserve(call)
    call.estimated_compute_ns = 1000
    await ledger.finish(call, "client_closed", 499, "client_closed", delivered=True)
    assert ledger.consistent
    assert (ledger.unsettled, ledger.counters.billed_pico_usd) == (0, {"sentiment": 100})
    await ledger.stop()
    found = await row(store, call)
    assert (found["state"], found["status"], found["tokens"]) == ("client_closed", 499, 9)
    assert (found["billed_pico_usd"], found["basis"], bool(found["settled"])) == (100, "estimate", True)
    assert await fetch(store, "SELECT sum(billed_pico_usd) FROM usage_daily") == [(100,)]


async def test_test_keys_are_metered_and_owe_nothing(make_ledger, store, triton):
    ledger = await make_ledger()
    call = await serve(ledger, tokens=4, principal=make_principal(test=True))
    triton.infer("sentiment", 1, compute_ns=1000)
    await ledger.stop()
    found = await row(store, call)
    assert (found["tokens"], found["cost_pico_usd"], found["billed_pico_usd"]) == (4, 100, 0)


async def test_accepted_is_always_the_sum_of_what_became_of_it(make_ledger):
    ledger = await make_ledger()
    open_calls = [make_call() for _ in range(3)]
    for call in open_calls:
        await ledger.reserve(call)
        assert ledger.consistent
    for state in ("completed", "completed", "failed", "client_closed"):
        await serve(ledger, state)
        assert ledger.consistent
    counters = ledger.counters
    assert (counters.accepted, counters.completed, counters.failed, counters.client_closed) == (7, 2, 1, 1)
    assert (ledger.inflight, ledger.dropped) == (3, 0)


async def test_finishing_twice_counts_once(make_ledger, store):
    ledger = await make_ledger()
    call = await serve(ledger)
    await ledger.finish(call, "failed", 500)
    await ledger.flush()
    assert ledger.counters.failed == 0
    assert await fetch(store, STATES) == [("completed", 1)]


async def test_a_call_without_principal_is_a_defect(make_ledger):
    ledger = await make_ledger()
    call = make_call()
    call.principal = None
    with pytest.raises(ValueError, match="principal"):
        await ledger.reserve(call)


async def test_text_that_a_database_would_refuse_is_made_harmless(make_ledger, store):
    ledger = await make_ledger()
    call = make_call()
    call.request_id = "nul\0 lone \ud800 " + "x" * 500
    call.operation = "o" * 100
    await ledger.reserve(call)
    await ledger.finish(call, "failed", 500, "e" * 100)
    await ledger.flush()
    found = await row(store, call)
    assert found["request_id"].startswith("nul? lone ? xxx")
    assert [len(found[name]) for name in ("request_id", "operation", "error")] == [128, 64, 64]


@pytest.mark.parametrize("count", [101, 1_001, 10_001])
async def test_every_record_of_one_flush_arrives(make_ledger, store, count):
    ledger = await make_ledger()
    for index in range(count):
        await serve(ledger, principal=make_principal(f"p{index}", f"k{index}"))
    await ledger.flush()
    assert await fetch(store, "SELECT count(DISTINCT key_id) FROM usage_records") == [(count,)]
    assert await fetch(store, "SELECT count(*), sum(requests) FROM usage_daily") == [(count, count)]
    assert ledger.metered == count
    assert ledger.spooled_bytes == 0


async def test_after_stop_nothing_is_left_in_the_journal(make_ledger, store, settings):
    ledger = await make_ledger()
    for _ in range(20):
        await serve(ledger)
    assert journals(settings) == [ledger.gateway_id]
    await ledger.stop()
    assert journals(settings) == []
    assert await fetch(store, STATES) == [("completed", 20)]
    assert await fetch(store, "SELECT count(*) FROM usage_records WHERE NOT settled") == [(0,)]


async def test_after_stop_calls_are_refused(make_ledger):
    ledger = await make_ledger()
    await ledger.stop()
    assert not ledger.available
    with pytest.raises(Unavailable):
        await ledger.reserve(make_call())


async def test_without_a_folder_to_write_to_it_does_not_start(settings, store, triton):
    (settings.data_dir / "journal").write_text("in the way")
    ledger = Ledger(settings, store, make_prices(), triton.statistics)
    with pytest.raises(OSError, match="journal"):
        await ledger.start()


async def test_segments_are_deleted_only_after_their_records_are_committed(make_ledger, store):
    ledger = await make_ledger(journal_max_bytes=2**18)
    for _ in range(200):
        await serve(ledger)
    before = ledger.journal_bytes
    assert before == ledger.spooled_bytes > 50_000
    await ledger.flush()
    assert ledger.journal_bytes < before / 3
    assert await fetch(store, STATES) == [("completed", 200)]


# --- faults


async def test_a_dead_gateways_journal_is_replayed_and_its_open_calls_become_unknown(make_ledger, store, settings):
    dead = await make_ledger()
    ended = await serve(dead, tokens=5)
    flushed_open = make_call()
    await dead.reserve(flushed_open)
    await dead.flush()
    only_in_journal = await serve(dead, "failed", 502)
    open_call = make_call()
    await dead.reserve(open_call)
    abandon(dead)
    ledger = await make_ledger(interval_s=0.02)
    await until(lambda: journals(settings) == [ledger.gateway_id])
    states = {call.usage_id: (await row(store, call))["state"] for call in (ended, flushed_open, only_in_journal)}
    assert list(states.values()) == ["completed", "unknown", "failed"]
    found = await row(store, open_call)
    assert (found["state"], found["error"], found["billed_pico_usd"]) == ("unknown", "gateway_lost", 0)
    assert ledger.unknown == 2
    assert await fetch(store, "SELECT count(*) FROM usage_records WHERE NOT settled") == [(0,)]
    async with store.write() as connection:
        assert await rebuild_daily(connection) == []


async def test_a_living_gateways_journal_is_left_alone(make_ledger, store, settings):
    first = await make_ledger()
    call = make_call()
    await first.reserve(call)
    second = await make_ledger(interval_s=0.02)
    await serve(second)
    await until(lambda: second.metered)
    assert journals(settings) == sorted([first.gateway_id, second.gateway_id])
    await first.finish(call, "completed", 200)
    await first.stop()
    assert await fetch(store, STATES) == [("completed", 2)]


async def test_a_torn_tail_and_a_corrupt_middle_cost_what_they_hit_and_are_reported(make_ledger, store, settings):
    dead = await make_ledger()
    calls = [await serve(dead) for _ in range(5)]
    abandon(dead)
    (path,) = (settings.data_dir / "journal" / dead.gateway_id).glob(f"*{SUFFIX}")
    data = bytearray(path.read_bytes())
    at = data.index(calls[2].usage_id.encode(), data.index(calls[2].usage_id.encode()) + 1)
    data[at] ^= 1  # the end of the third call
    path.write_bytes(data + data[:50])
    ledger = await make_ledger(interval_s=0.02)
    await until(lambda: journals(settings) == [ledger.gateway_id])
    assert [(await row(store, call))["state"] for call in calls] == [
        "completed", "completed", "unknown", "completed", "completed",
    ]  # fmt: skip
    assert (ledger.damaged, ledger.dropped) == (2, 2)
    (kept,) = (settings.data_dir / "journal" / DAMAGED).iterdir()
    assert kept.name == f"{dead.gateway_id}-{path.name}"


async def test_too_full_a_journal_refuses_new_calls_and_lets_those_in_flight_end(make_ledger, store):
    ledger = await make_ledger(journal_max_bytes=2**16)
    in_flight = make_call()
    await ledger.reserve(in_flight)
    while not ledger._journal.full:
        await serve(ledger)
    with pytest.raises(Unavailable) as refusal:
        await serve(ledger)
    assert refusal.value.retry_after_s
    assert not ledger.available
    await ledger.finish(in_flight, "completed", 200)
    counters = ledger.counters
    assert (counters.refused, ledger.dropped) == (1, 0)
    await ledger.flush()
    assert ledger.available
    await serve(ledger)
    await ledger.flush()
    assert await fetch(store, STATES) == [("completed", counters.accepted)]


async def test_a_full_disk_answers_nobody_and_bills_nobody_and_recovers(make_ledger, store):
    ledger = await make_ledger(interval_s=0.02)
    await serve(ledger)
    executed = make_call()
    await ledger.reserve(executed)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, ledger._journal.segments[-1].descriptor)
    os.close(full)
    with pytest.raises(Unavailable):
        await ledger.finish(executed, "completed", 200)
    assert not ledger.available
    with pytest.raises(Unavailable):
        await ledger.reserve(make_call())
    assert ledger.consistent
    await until(lambda: ledger.available)
    await serve(ledger)
    await ledger.stop()
    assert await fetch(store, STATES) == [("completed", 2), ("failed", 1)]
    found = await row(store, executed)
    assert (found["status"], found["error"], found["billed_pico_usd"]) == (503, "unavailable", 0)


async def test_a_limit_on_file_size_is_a_full_disk_too(make_ledger, store):
    ledger = await make_ledger()
    await serve(ledger)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.journal_bytes + 100, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await ledger.reserve(make_call())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await serve(ledger)
    await ledger.flush()
    assert ledger.damaged == 0
    assert await fetch(store, STATES) == [("completed", 2)]


async def test_a_failed_sync_withholds_the_answer_and_the_bill(make_ledger, store, triton):
    ledger = await make_ledger(journal_sync_ms=0.0, interval_s=0.02)
    await serve(ledger)
    call = make_call(tokens=3)
    await ledger.reserve(call)
    await ledger._journal.synced()
    reader, writer = os.pipe()
    os.dup2(writer, ledger._journal.segments[-1].descriptor)  # takes writes, cannot be synced
    with pytest.raises(Unavailable):
        await ledger.finish(call, "completed", 200)
    assert ledger.consistent
    await until(lambda: ledger.available)
    triton.infer("sentiment", 2, compute_ns=1000)
    await serve(ledger)
    await ledger.stop()
    found = await row(store, call)
    assert (found["state"], found["billed_pico_usd"], found["basis"]) == ("completed", 0, "none")
    assert await fetch(store, STATES) == [("completed", 3)]
    os.close(reader)
    os.close(writer)


async def test_with_each_answer_synced_so_is_each_reservation(make_ledger, store):
    ledger = await make_ledger(journal_sync_ms=0.0, interval_s=0.02)
    call = make_call()
    syncs = ledger._journal.syncs
    await ledger.reserve(call)
    assert ledger._journal.syncs == syncs + 1
    await ledger.finish(call, "completed", 200)
    reader, writer = os.pipe()
    os.dup2(writer, ledger._journal.segments[-1].descriptor)  # takes writes, cannot be synced
    refused = make_call()
    with pytest.raises(Unavailable):
        await ledger.reserve(refused)
    assert ledger.consistent
    assert (ledger.inflight, ledger.counters.refused) == (0, 1)
    await until(lambda: ledger.available)
    await ledger.stop()
    assert await fetch(store, STATES) == [("completed", 1), ("failed", 1)]
    assert (await row(store, refused))["billed_pico_usd"] == 0
    os.close(reader)
    os.close(writer)


async def cancel_while_it_waits_for_the_disk(waiting):
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)  # it has written, and waits
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_cancelled_while_its_end_is_synced_is_counted_and_billed(make_ledger, store, triton):
    ledger = await make_ledger(journal_sync_ms=0.0)
    call = make_call()
    await ledger.reserve(call)
    await cancel_while_it_waits_for_the_disk(ledger.finish(call, "completed", 200))
    assert ledger.consistent
    assert ledger.unsettled == 1
    triton.infer("sentiment", 1, compute_ns=1000)
    await ledger.stop()
    found = await row(store, call)
    assert (found["state"], found["billed_pico_usd"], found["settled"]) == ("completed", 100, True)


async def test_a_call_cancelled_while_its_begin_is_synced_was_given_up(make_ledger, store):
    ledger = await make_ledger(journal_sync_ms=0.0)
    call = make_call()
    await cancel_while_it_waits_for_the_disk(ledger.reserve(call))
    assert ledger.consistent
    assert ledger.inflight == 0
    await ledger.stop()
    assert (await row(store, call))["state"] == "client_closed"


async def test_an_intact_frame_of_another_program_is_set_aside(make_ledger, store, settings):
    ledger = await make_ledger()
    await serve(ledger)
    ledger._journal.append(1, ["not", "a", "record"])
    ledger._journal.append(77, "unknown")
    await serve(ledger)
    await ledger.flush()
    assert await fetch(store, STATES) == [("completed", 2)]
    assert ledger.damaged == 2
    assert len(list((settings.data_dir / "journal" / DAMAGED).iterdir())) == 1


async def test_a_file_that_lost_its_end_does_not_stop_the_flusher(make_ledger, store):
    ledger = await make_ledger()
    await serve(ledger)
    size = ledger.journal_bytes
    await serve(ledger)
    os.truncate(ledger._journal.segments[0].path, size + 20)
    await ledger.flush()
    assert ledger.damaged == 2
    await serve(ledger)
    await ledger.flush()
    assert ledger.spooled_bytes == 0


async def test_a_record_that_no_database_takes_holds_up_no_other(make_ledger, store, settings):
    ledger = await make_ledger()
    calls = [await serve(ledger) for _ in range(5)]
    async with store.write() as connection:
        if store.kind == "postgresql":
            await connection.exec_driver_sql("ALTER TABLE usage_records ADD CHECK (key_id <> 'refused')")
        else:
            await connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON usage_records WHEN NEW.key_id = 'refused' "
                "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
    refused = await serve(ledger, principal=make_principal(key_id="refused"))
    calls += [await serve(ledger) for _ in range(5)]
    await ledger.flush()
    assert await fetch(store, STATES) == [("completed", 10)]
    assert (ledger.rejected, ledger.dropped) == (1, 1)
    assert refused.usage_id in (settings.data_dir / "journal" / DAMAGED / "rejected.jsonl").read_text()


async def test_it_starts_and_serves_while_triton_is_away(settings, store):
    async def away():
        raise Unavailable("no server")

    ledger = Ledger(settings, store, make_prices(), away, interval_s=0.01)
    await ledger.start()
    call = await serve(ledger)
    await ledger.stop()
    assert (await row(store, call))["basis"] == "estimate"


async def test_a_defect_in_one_reading_does_not_end_the_others(settings, store, triton):
    readings = 0

    async def defective():
        nonlocal readings
        readings += 1
        if readings == 3:
            raise RuntimeError("a defect")
        return triton.read()

    ledger = Ledger(settings, store, make_prices(), defective, interval_s=0.01)
    await ledger.start()
    await until(lambda: readings > 5)
    await ledger.stop()


async def test_the_books_balance_over_many_calls(make_ledger, store, triton):
    ledger = await make_ledger(interval_s=0.01)

    async def client(number):
        for index in range(30):
            call = make_call(tokens=number + 1, rows=1 + index % 3)
            await ledger.reserve(call)
            await asyncio.sleep(0)
            triton.infer("sentiment", call.units.rows, compute_ns=1000 * call.units.rows)
            await asyncio.sleep(0.001)
            await ledger.finish(call, "completed" if index % 10 else "failed", 200)
            assert ledger.imbalance.get("sentiment", 0) == 0

    await asyncio.gather(*(client(number) for number in range(8)))
    await until(lambda: not ledger.unsettled)
    await ledger.stop()
    assert ledger.imbalance == {"sentiment": 0}
    (sums,) = await fetch(
        store, "SELECT sum(rows), sum(compute_ns), count(*) FROM usage_records WHERE basis = 'measured'"
    )
    assert sums == (432, 432_000, 216)


async def test_an_imbalance_is_flagged(make_ledger, triton):
    ledger = await make_ledger(interval_s=0.01)
    await until(lambda: ledger.compared.get("sentiment"))
    await serve(ledger)
    triton.infer("sentiment", 6)
    await until(lambda: ledger.imbalance["sentiment"] == 5)


async def test_gateways_on_one_triton_have_one_set_of_books(make_ledger, triton):
    ledgers = [await make_ledger(interval_s=0.02) for _ in range(3)]
    await until(lambda: all(ledger.compared.get("sentiment") for ledger in ledgers))

    async def client(ledger):
        for index in range(60):
            call = make_call(rows=1 + index % 3)
            await ledger.reserve(call)
            triton.infer("sentiment", call.units.rows)
            await asyncio.sleep(0.005)
            await ledger.finish(call, "completed", 200)

    await asyncio.gather(*(client(ledger) for ledger in ledgers for _ in range(3)))
    await asyncio.gather(*(ledger.flush() for ledger in ledgers))
    # Not one of them asked for these: each sees it, and nothing else.
    triton.infer("sentiment", 4)
    await until(lambda: [ledger.imbalance["sentiment"] for ledger in ledgers] == [4, 4, 4])


async def test_a_killed_gateways_calls_are_missing_until_its_journal_is_replayed(make_ledger, triton, settings):
    survivor = await make_ledger(interval_s=0.02, data_dir=settings.data_dir / "other")
    victim = await make_ledger()  # writes nothing by itself
    await until(lambda: survivor.compared.get("sentiment"))
    for _ in range(5):
        triton.infer("sentiment", 2)
        await serve(victim, rows=2)
    in_flight = make_call(rows=3)
    await victim.reserve(in_flight)
    triton.infer("sentiment", 3)
    abandon(victim)
    await until(lambda: survivor.imbalance["sentiment"] == 13)
    await make_ledger(interval_s=0.02)
    await until(lambda: survivor.imbalance["sentiment"] == 0)


async def test_settings_decide_when_answers_wait_for_the_disk(make_ledger):
    each = await make_ledger(journal_sync_ms=0.0)
    before = each._journal.syncs
    await serve(each)
    assert each._journal.syncs > before
    lazy = await make_ledger(journal_sync_ms=3_600_000.0)
    await serve(lazy)
    assert lazy._journal.syncs == 0


async def test_the_null_ledger_only_counts():
    ledger = NullLedger()
    await ledger.start()
    call = make_call()
    await ledger.reserve(call)
    assert ledger.inflight == 1
    await ledger.finish(call, "completed", 200)
    await ledger.finish(call, "completed", 200)
    assert (ledger.counters.completed, ledger.consistent, ledger.enabled) == (1, True, False)
    assert ledger.estimate("m", Units(rows=1)) == (0, 0.0)
    await ledger.stop()


def test_the_null_ledger_has_all_that_the_other_has(settings, store):
    ledger = Ledger(settings, store, make_prices(), CountingTriton().statistics)
    public = {name for name in dir(ledger) if not name.startswith("_")}
    assert public <= {name for name in dir(NullLedger()) if not name.startswith("_")}


# --- the database


@pytest.mark.database
async def test_while_the_database_is_away_calls_are_served_and_nothing_is_lost(tmp_path, own_postgresql, triton):
    settings = make_settings(tmp_path, database_url=own_postgresql.create_database())
    store = await Store.open(settings)
    ledger = Ledger(settings, store, make_prices(), triton.statistics, interval_s=0.02)
    await ledger.start()
    try:
        for _ in range(50):
            await serve(ledger)
        await until(lambda: ledger.metered == 50)
        own_postgresql.stop()
        for _ in range(500):
            await serve(ledger)
        with pytest.raises(Unavailable):
            await ledger.flush()
        assert ledger.spooled_bytes > 100_000
        assert ledger.available
        own_postgresql.start()
        await until(lambda: ledger.metered == 550)
        assert await fetch(store, STATES) == [("completed", 550)]
        own_postgresql.stop()
        last = await serve(ledger)
        await ledger.stop()
        assert journals(settings) == [ledger.gateway_id]
        own_postgresql.start()
        successor = Ledger(settings, store, make_prices(), triton.statistics, interval_s=0.02)
        await successor.start()
        await until(lambda: journals(settings) == [successor.gateway_id])
        await successor.stop()
        assert (await row(store, last))["state"] == "completed"
    finally:
        await ledger.stop()
        await store.close()


async def test_a_locked_database_delays_writing_only(make_ledger, store):
    ledger = await make_ledger(interval_s=0.02)
    async with store.write() as connection:
        await connection.exec_driver_sql("DELETE FROM usage_daily")
        for _ in range(100):
            await serve(ledger)
        assert ledger.counters.completed == 100
    await until(lambda: ledger.metered == 100)
