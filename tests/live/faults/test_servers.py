"""Several Tritons behind one gateway: killed, stopped, cut off, silent, slow, restarted, under load.

Every request is counted three times, by its client, by the model that executed it and by the usage table, and the
three must agree: no wrong answer, nothing executed twice, nothing billed that was not answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.live.faults.conftest import WAYS, Fleet, targets
from tests.live.faults.ledger import ClientLedger, Entry, eventually
from tests.live.faults.servers import GatewayProcess, RecordingTriton

pytestmark = pytest.mark.live

CLIENTS = 8
IN_FLIGHT = 4
"""Requests of one model that the gateway sends before it lets others wait: two for each Triton."""
NUMBERS = itertools.count(500_000)
Poll = Callable[..., None]


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
async def test_a_server_killed_and_restarted_under_load_costs_what_it_had_in_hand(fleet: Fleet, poll: Poll) -> None:
    books = ClientLedger(fleet)

    async def disturb() -> None:
        await eventually(lambda: books.count(200) > 50)
        fleet.tritons[0].kill()
        at_kill = books.count(200)
        await eventually(lambda: fleet.ready_servers() == 1 and books.count(200) > at_kill + 50)
        await asyncio.to_thread(fleet.tritons[0].revive, poll)
        await eventually(lambda: fleet.ready_servers() == 2)
        executed = fleet.tritons[0].executed().total()
        await eventually(lambda: fleet.tritons[0].executed().total() > executed + 20)

    disturbance = asyncio.create_task(disturb())
    await books.load(CLIENTS, disturbance.done, 60)
    await disturbance
    books.check(poll, {200, 502})  # never 503: the other server had not executed what this one could not take
    assert books.count(502) <= CLIENTS


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
@pytest.mark.parametrize("fault", ["stopped", "deaf", "mute"])
async def test_a_silent_server_holds_only_what_it_was_given_before_that_was_seen(
    fleet: Fleet, poll: Poll, fault: str
) -> None:
    books = ClientLedger(fleet, timeout_s=3.0)

    async def disturb() -> None:
        await eventually(lambda: books.count(200) > 50)
        if fault == "stopped":
            fleet.tritons[0].freeze()
        else:
            fleet.roads[0].set(**{fault: True})
        await eventually(lambda: fleet.ready_servers() == 1)
        served = books.count(200)
        await eventually(lambda: books.count(200) > served + 100)
        fleet.tritons[0].thaw()
        fleet.roads[0].heal()
        await eventually(lambda: fleet.ready_servers() == 2)
        executed = fleet.tritons[0].executed().total()
        await eventually(lambda: fleet.tritons[0].executed().total() > executed + 10)

    disturbance = asyncio.create_task(disturb())
    await books.load(CLIENTS, disturbance.done, 60)
    await disturbance
    books.check(poll, {200, 502, 504})
    assert books.count(502, 504) <= CLIENTS
    for entry in books.entries:
        if entry.status == 504:
            assert 2.9 <= entry.elapsed_s <= 4.5, entry.elapsed_s


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
async def test_connections_that_are_cut_off_are_never_tried_again(fleet: Fleet, poll: Poll) -> None:
    books = ClientLedger(fleet, milliseconds=20)

    async def disturb() -> None:
        for _ in range(6):
            answered = books.count(200)
            await eventually(lambda answered=answered: books.count(200) > answered + 15)  # type: ignore[misc]
            fleet.roads[0].reset()

    disturbance = asyncio.create_task(disturb())
    await books.load(CLIENTS, disturbance.done, 60)
    await disturbance
    books.check(poll, {200, 502, 503})
    assert 1 <= books.count(502, 503) <= 6 * CLIENTS


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
async def test_packets_of_one_byte_and_late_ones_are_answered_right(fleet: Fleet, poll: Poll) -> None:
    """Over HTTP the answers only: Triton's own HTTP server takes the beginning of a path for all of it when a request
    line comes in pieces, and answers 404.
    """
    books = ClientLedger(fleet)
    for road in fleet.roads:
        road.set(slice_bytes=1, slice_requests=fleet.way == "grpc")
    await books.load(4, lambda: books.count(200) >= 20)
    for road in fleet.roads:
        road.heal()
        road.set(latency_s=0.1)
    await books.load(4, lambda: books.count(200) >= 40)
    books.check(poll, {200})


async def test_connections_whose_end_comes_late_are_not_waited_for(fleet: Fleet, poll: Poll) -> None:
    """A server closes (it is restarted), and the gateway learns of it a second later: what was sent into it is 502
    at once or never, and everything else goes to the other server.
    """
    books = ClientLedger(fleet, timeout_s=5.0)
    for road in fleet.roads:
        road.set(close_after_s=1.0)

    async def disturb() -> None:
        await eventually(lambda: books.count(200) > 50)
        fleet.tritons[0].kill()
        at_kill = books.count(200)
        await eventually(lambda: books.count(200) > at_kill + 100)

    disturbance = asyncio.create_task(disturb())
    await books.load(CLIENTS, disturbance.done, 60)
    await disturbance
    await asyncio.to_thread(fleet.tritons[0].revive, poll)
    books.check(poll, {200, 502, 503, 504})
    assert books.count(502, 503, 504) <= 2 * CLIENTS


async def test_a_slow_server_gets_less_to_do(fleet: Fleet, poll: Poll) -> None:
    books = ClientLedger(fleet, model="solo")
    fleet.roads[0].set(latency_s=0.2)
    before = [triton.executed().total() for triton in fleet.tritons]
    await books.load(CLIENTS, lambda: books.count(200) >= 150)
    slow, fast = (triton.executed().total() - earlier for triton, earlier in zip(fleet.tritons, before, strict=True))
    books.check(poll, {200})
    assert fast > 2 * slow, (fast, slow)


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
async def test_a_request_in_hand_of_a_killed_server_is_502_and_not_repeated(fleet: Fleet, poll: Poll) -> None:
    books = ClientLedger(fleet)
    async with books.client() as client:
        asked = asyncio.create_task(books.ask(client, milliseconds=3000))
        holder = await _holder(fleet, asked)
        holder.kill()
        entry = await asyncio.wait_for(asked, 2.5)
    await asyncio.to_thread(holder.revive, poll)
    assert entry.status == 502
    assert fleet.executions(entry.number) == 1
    await asyncio.to_thread(poll, lambda: entry.usage_id in fleet.gateway.ended(), 30, "the usage record")
    assert fleet.gateway.usage()[entry.usage_id] == ("failed", 502, 0)
    books.check(poll, {502})


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
async def test_where_no_server_can_be_reached_the_answer_is_503_at_once(fleet: Fleet, poll: Poll) -> None:
    for road in fleet.roads:
        road.refuse()
    books = ClientLedger(fleet)
    async with books.client() as client:
        for _ in range(10):
            await books.ask(client)
        assert (await client.get("/healthz/ready")).status_code == 503
    books.check(poll, {502, 503})
    assert books.entries[-1].status == 503
    assert all(entry.elapsed_s < 2.0 for entry in books.entries)


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
@pytest.mark.parametrize("model", ["recorder", "solo", "hurried"])
async def test_what_a_deadline_ends_is_not_executed_any_more(
    fleet: Fleet, tmp_path: Path, poll: Poll, model: str
) -> None:
    """Where Triton is told of cancellations, which this old one is not by default. What waits in Triton goes there over
    gRPC, whatever the way of the others: Triton's HTTP server ends what it has begun to read, so of ``recorder`` it has
    up to two batches that nobody waits for; of ``hurried`` it has none, since its queue policy obeys the time-out
    that comes with each request.
    """
    gateway = GatewayProcess(
        tmp_path, fleet.repository, targets(fleet.roads[:1], fleet.way), poll, triton_cancel_since="0"
    )
    await asyncio.to_thread(gateway.bootstrap().start)
    try:
        mine = dataclasses.replace(fleet, gateway=gateway)
        await eventually(lambda: mine.ready_servers() == 1)
        slow, hasty = ClientLedger(mine, model=model), ClientLedger(mine, model=model, timeout_s=0.4)
        async with slow.client() as client:
            long = asyncio.create_task(slow.ask(client, milliseconds=1500))
            await _holder(mine, long)
            # recorder: they wait in the gateway's queue, but for the first; solo: in Triton's.
            late = await asyncio.gather(*(hasty.ask(client) for _ in range(6)))
            assert {entry.status for entry in late} == {504}
            assert all(0.35 <= entry.elapsed_s <= 1.2 for entry in late)
            assert (await long).right
            assert (await slow.ask(client)).right
        executed = sum(mine.executions(entry.number) for entry in late)
        most = {("http", "recorder"): len(late), ("http", "hurried"): 0}.get((mine.way, model), 1)
        assert executed <= most, executed  # 1: ready to go when it was cancelled
        hasty.check(poll, {504})
    finally:
        await asyncio.to_thread(gateway.stop)
    slow.check(poll, {200})


async def test_short_deadlines_and_failing_models_take_no_server_away(fleet: Fleet, poll: Poll) -> None:
    hasty, books = ClientLedger(fleet, timeout_s=0.005), ClientLedger(fleet)
    async with books.client() as client:
        await asyncio.gather(*(hasty.ask(client, milliseconds=50) for _ in range(30)))
        tensor = {"name": "INPUT", "shape": [1, 2], "datatype": "FP64", "data": [-1.0, 0.0]}
        for _ in range(12):
            answer = await client.post("/v2/models/recorder/infer", json={"inputs": [tensor]})
            assert answer.status_code == 502
            assert "negative" not in answer.text  # the model's own words stay inside
    assert fleet.ready_servers() == 2
    before = [triton.executed().total() for triton in fleet.tritons]
    await books.load(CLIENTS, lambda: books.count(200) >= 60)
    books.check(poll, {200})
    for triton, earlier in zip(fleet.tritons, before, strict=True):
        assert triton.executed().total() > earlier


@pytest.mark.parametrize("fleet", WAYS, indirect=True)
async def test_a_failing_request_in_a_batch_spoils_its_neighbours_nothing(fleet: Fleet, poll: Poll) -> None:
    """Seven good requests gather with a failing one while the model is busy, and travel with it. The bad one is found
    by halves: it alone is 502, and nobody is executed more often than there are halves of halves.
    """
    good, slow = ClientLedger(fleet, timeout_s=30), ClientLedger(fleet, timeout_s=30)
    together = 8
    async with good.client() as client:
        busy = [asyncio.create_task(slow.ask(client, milliseconds=1500)) for _ in range(IN_FLIGHT)]
        await eventually(lambda: fleet.gateway.metric("tidegate_ledger_inflight") == IN_FLIGHT)
        number = -next(NUMBERS)
        tensor = {"name": "INPUT", "shape": [1, 2], "datatype": "FP64", "data": [float(number), 0.0]}
        bad = asyncio.create_task(client.post("/v2/models/recorder/infer", json={"inputs": [tensor]}))
        entries = [asyncio.create_task(good.ask(client)) for _ in range(together - 1)]
        await eventually(lambda: fleet.gateway.metric('tidegate_queue_depth{model="recorder"}') == together)
        batches = fleet.gateway.metric('tidegate_coalesced_batch_size_count{model="recorder"}')
        assert (await bad).status_code == 502
        assert all([(await entry).right for entry in entries])
        assert all([(await entry).right for entry in busy])
    most = 1 + math.ceil(math.log2(together))
    assert 2 <= fleet.executions(number) <= most
    counts = [fleet.executions(entry.number) for entry in good.entries]
    assert min(counts) >= 1
    assert 2 <= max(counts) <= most
    assert fleet.gateway.metric('tidegate_coalesced_batch_size_count{model="recorder"}') <= batches + 2 * most
    slow.check(poll, {200})


async def test_a_model_that_one_server_unloaded_is_served_by_the_other(fleet: Fleet, poll: Poll) -> None:
    books, other = ClientLedger(fleet, model="solo"), ClientLedger(fleet)

    async def disturb() -> None:
        await eventually(lambda: books.count(200) > 20)
        fleet.tritons[0].unload("solo")  # behind the gateway's back: its index is up to a probe old
        answered = books.count(200)
        await eventually(lambda: books.count(200) > answered + 50)

    disturbance = asyncio.create_task(disturb())
    await books.load(CLIENTS, disturbance.done)
    await disturbance
    books.check(poll, {200})
    fleet.tritons[1].unload("solo")
    url = f"{fleet.gateway.url}/v2/models/solo/ready"
    gone = lambda: httpx.get(url, headers=fleet.gateway.headers, timeout=10).status_code == 503  # noqa: E731
    await asyncio.to_thread(poll, gone, 10, "the model's end")
    async with books.client() as client:
        refused = await books.ask(client)
        assert refused.status == 503  # though both servers say that they are ready
        assert (await other.ask(client)).right
    books.check(poll, {200, 503})


async def _holder(fleet: Fleet, asked: asyncio.Task[Entry]) -> RecordingTriton:
    """The Triton that executes the request that ``asked`` is about to send."""
    before = [triton.executed().total() for triton in fleet.tritons]
    found = lambda: [t for t, n in zip(fleet.tritons, before, strict=True) if t.executed().total() > n]  # noqa: E731
    await eventually(lambda: found() or asked.done())
    assert not asked.done(), asked.result()
    return found()[0]
