"""Models are unloaded, reloaded and break while clients use them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.live.faults.conftest import Fleet
from tests.live.faults.ledger import ClientLedger, eventually
from tests.live.faults.servers import write_recorder

pytestmark = pytest.mark.live

CLIENTS = 8
Poll = Callable[..., None]


@pytest.fixture
def model_file(fleet: Fleet) -> Iterator[Path]:
    """The file of ``recorder``, put back afterwards."""
    path = fleet.repository / "recorder" / "1" / "model.py"
    whole = path.read_text()
    yield path
    path.write_text(whole)


async def change(fleet: Fleet, action: str, model: str = "recorder") -> httpx.Response:
    async with httpx.AsyncClient(base_url=fleet.gateway.url, headers=fleet.gateway.headers, timeout=60) as client:
        return await client.post(f"/v2/repository/models/{model}/{action}")


async def after(books: ClientLedger, more: int, status: int = 200) -> None:
    """Wait for ``more`` answers with ``status``."""
    wanted = books.count(status) + more
    await eventually(lambda: books.count(status) >= wanted)


async def test_reloads_under_load_are_not_noticed(fleet: Fleet, poll: Poll, model_file: Path) -> None:
    books, other = ClientLedger(fleet), ClientLedger(fleet, model="solo")
    before, whole = len(fleet.gateway.audit("model.load")), await asyncio.to_thread(model_file.read_text)

    async def disturb() -> None:
        for number in range(3):
            await after(books, 30)
            await asyncio.to_thread(model_file.write_text, f"{whole}# changed {number}\n")
            answer = await change(fleet, "load")
            assert answer.status_code == 200, answer.text
        await after(books, 30)

    disturbance = asyncio.create_task(disturb())
    await asyncio.gather(books.load(CLIENTS, disturbance.done), other.load(2, disturbance.done))
    await disturbance
    books.check(poll, {200})
    other.check(poll, {200})
    rows = fleet.gateway.audit("model.load")[before:]
    assert [(model, result) for _, model, result in rows] == [("recorder", "begun"), ("recorder", "ok")] * 3
    assert rows[0][0] in fleet.gateway.key  # the key's id


async def test_unloading_under_load_refuses_and_loading_serves_again(fleet: Fleet, poll: Poll) -> None:
    books, other = ClientLedger(fleet), ClientLedger(fleet, model="solo")

    async def disturb() -> None:
        await after(books, 30)
        assert (await change(fleet, "unload")).status_code == 200
        await after(books, 20, 503)
        async with other.client() as client:
            assert (await client.get("/v2/models/recorder/ready")).status_code == 503
            assert (await client.get("/healthz/ready")).status_code == 503
            assert (await client.get("/v2/models/solo/ready")).status_code == 200
        assert (await change(fleet, "load")).status_code == 200
        await after(books, 30)

    disturbance = asyncio.create_task(disturb())
    await asyncio.gather(books.load(CLIENTS, disturbance.done), other.load(2, disturbance.done))
    await disturbance
    books.check(poll, {200, 503})
    other.check(poll, {200})  # its neighbour's unloading is nothing to it
    assert books.entries[-1].status == 200
    assert [row[1:] for row in fleet.gateway.audit("model.unload")][-1] == ("recorder", "ok")


async def test_a_reload_that_fails_leaves_the_old_version_serving(fleet: Fleet, poll: Poll, model_file: Path) -> None:
    books = ClientLedger(fleet)
    before = len(fleet.gateway.audit("model.load"))

    async def disturb() -> None:
        await after(books, 30)
        await asyncio.to_thread(model_file.write_text, "this is no Python")
        answer = await change(fleet, "load")
        assert answer.status_code == 502
        assert set(answer.json()) == {"error"}
        assert str(fleet.repository) not in answer.text
        assert "SyntaxError" not in answer.text
        await after(books, 50)

    disturbance = asyncio.create_task(disturb())
    await books.load(CLIENTS, disturbance.done)
    await disturbance
    books.check(poll, {200})
    async with books.client() as client:
        assert (await client.get("/healthz/ready")).status_code == 200
    assert [row[1:] for row in fleet.gateway.audit("model.load")[before:]] == [
        ("recorder", "begun"),
        ("recorder", "failed"),
    ]


async def test_changes_of_models_need_the_right_and_a_model_that_is_there(fleet: Fleet) -> None:
    before = len(fleet.gateway.audit("model.load"))
    assert (await change(fleet, "load", "no-such-model")).status_code == 404
    assert (await change(fleet, "load", "a" * 300)).status_code == 404
    narrow = {"authorization": f"Bearer {await asyncio.to_thread(fleet.gateway.make_key, 'narrow')}"}
    async with httpx.AsyncClient(base_url=fleet.gateway.url, headers=narrow) as client:
        for action in ("load", "unload"):
            answer = await client.post(f"/v2/repository/models/recorder/{action}")
            assert answer.status_code in {403, 404}
        assert (await client.get("/v2/models/recorder/ready")).status_code == 200
    assert len(fleet.gateway.audit("model.load")) == before


# --- what another gateway, or somebody at Triton, loads anew

CHANGING = "changing"


@pytest.fixture
async def changing(fleet: Fleet) -> AsyncIterator[str]:
    """A model that both Tritons have: up to 8 rows of 2 numbers."""
    write_recorder(fleet.repository, CHANGING, 8, 2)
    assert (await change(fleet, "load", CHANGING)).status_code == 200
    yield CHANGING
    for triton in fleet.tritons:
        await asyncio.to_thread(triton.unload, CHANGING)
    shutil.rmtree(fleet.repository / CHANGING)  # gateways that start later would wait for it


def takes(fleet: Fleet, rows: int, width: int) -> int:
    """What a request of ``rows`` of ``width`` gets."""
    tensor = {"name": "INPUT", "shape": [rows, width], "datatype": "FP64", "data": [1.0, 0.0, 0.0][:width] * rows}
    url = f"{fleet.gateway.url}/v2/models/{CHANGING}/infer"
    return httpx.post(url, json={"inputs": [tensor]}, headers=fleet.gateway.headers, timeout=30).status_code


async def test_what_another_gateway_loads_anew_is_known_to_all(
    fleet: Fleet, running_fleets: dict[str, Fleet], changing: str
) -> None:
    """Two gateways before the same Tritons: one has the model loaded with other inputs and a smaller batch."""
    other = running_fleets["grpc"]
    await eventually(lambda: takes(other, 8, 2) == 200)
    assert takes(fleet, 8, 2) == 200
    write_recorder(fleet.repository, changing, 4, 3)
    assert (await change(fleet, "load", changing)).status_code == 200
    assert [takes(fleet, *form) for form in ((4, 3), (5, 3), (1, 2))] == [200, 422, 422]  # at once where it was asked
    await eventually(lambda: takes(other, 4, 3) == 200)
    assert [takes(other, *form) for form in ((5, 3), (1, 2))] == [422, 422]


async def test_what_somebody_loads_anew_in_triton_itself_is_known_too(fleet: Fleet, changing: str) -> None:
    """A smaller batch, under load that fills batches: nobody's answer is spoilt by what the gateway did not know."""
    write_recorder(fleet.repository, changing, 2, 2)
    for triton in fleet.tritons:
        await asyncio.to_thread(triton.load, changing)
    books = ClientLedger(fleet, model=changing)
    await books.load(16, lambda: books.count(200) >= 100)
    assert set(books.statuses) == {200}
    assert all(entry.right for entry in books.entries)
    await eventually(lambda: takes(fleet, 3, 2) == 422)
    assert takes(fleet, 2, 2) == 200
