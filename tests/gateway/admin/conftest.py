"""The admin application behind a real HTTP server, on both databases, and callers with keys of every kind."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
import uvicorn

from gateway.access.access import open_access
from gateway.access.key import KeySpec
from gateway.admin.application import create_admin
from gateway.store.database import Store
from tests.gateway.servers import migrated_postgresql, migrated_settings, migrated_sqlite, postgresql

__all__ = ["migrated_postgresql", "migrated_settings", "migrated_sqlite", "postgresql"]


@pytest.fixture
async def store(migrated_settings):
    store = await Store.open(migrated_settings)
    yield store
    await store.close()


@pytest.fixture
async def access(store, migrated_settings):
    async with open_access(store, migrated_settings) as access:
        yield access


@pytest.fixture
async def address(store, access):
    """Host and port of the running application."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_admin(store, access),
            log_config=None,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            access_log=False,
        )
    )
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # named, or asyncio leaves Nagle's algorithm on
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.005)
        yield listener.getsockname()
        server.should_exit = True
        await task


@pytest.fixture
async def as_key(address):
    """Makes HTTP clients that send a key."""
    clients = []

    def make(key: str | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        client = httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", headers=headers)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
async def operator(as_key, access):
    """Whoever runs the gateway."""
    return as_key((await access.keys.bootstrap()).text)


@pytest.fixture
def make_key(access):
    async def make(project, *scopes, organisation=None, **values):
        await access.keys.ensure_project(project, organisation or project)
        return await access.keys.create(KeySpec(project, scopes=scopes or ("infer",), **values))

    return make


@pytest.fixture
async def tenant(as_key, make_key):
    """The administrator of the organisation ``acme``."""
    return as_key((await make_key("web", "keys:admin", organisation="acme")).text)


@pytest.fixture
async def user(as_key, make_key):
    """An application of ``acme``."""
    return as_key((await make_key("web", "infer", organisation="acme")).text)


@pytest.fixture
async def victim(make_key):
    """A key of another organisation."""
    return (await make_key("shop", "infer", organisation="other")).key
