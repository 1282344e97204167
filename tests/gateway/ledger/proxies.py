"""Proxies before a real PostgreSQL's socket, that do to its answers what networks do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.gateway.ledger.postgres import PostgreSQL

_SOCKET = ".s.PGSQL.5432"


class LosesCommits:
    """Swallows the answers to the first ``losses`` commits, and hangs up."""

    def __init__(self, losses: int = 0) -> None:
        self.losses = losses
        self.lost = 0
        self._swallowing: set[asyncio.StreamWriter] = set()

    def asked(self, client: asyncio.StreamWriter, data: bytes) -> None:
        """What a client asks for, before it is passed on."""
        if b"COMMIT" in data and self.lost < self.losses:
            self.lost += 1
            self._swallowing.add(client)

    async def answered(self, client: asyncio.StreamWriter) -> bool:
        """Whether the server's answer may pass; False: the connection ends."""
        return client not in self._swallowing  # the server has answered: it has committed


class Deaf:
    """Takes connections and bytes, and while ``on`` lets no answer through: a network that lost its way back."""

    def __init__(self) -> None:
        self.on = False

    def asked(self, _client: asyncio.StreamWriter, _data: bytes) -> None:
        """What a client asks for, before it is passed on."""

    async def answered(self, _client: asyncio.StreamWriter) -> bool:
        """Never, while ``on``."""
        if self.on:
            await asyncio.Event().wait()
        return True


@asynccontextmanager
async def before(server: PostgreSQL, folder: Path, fault: LosesCommits | Deaf, url: str) -> AsyncIterator[str]:
    """The URL by which ``url`` is reached through the proxy, whose socket is in ``folder``."""
    clients: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await _relay(f"{server.folder}/{_SOCKET}", fault, reader, writer)
        clients.discard(task)

    proxy = await asyncio.start_unix_server(serve, folder / _SOCKET)
    try:
        yield url.replace(str(server.folder), str(folder))
    finally:
        proxy.close()
        for task in list(clients):
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _relay(
    target: str, fault: LosesCommits | Deaf, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    upstream_reader, upstream = await asyncio.open_unix_connection(target)

    async def up() -> None:
        while data := await reader.read(65536):
            fault.asked(writer, data)
            upstream.write(data)
            await upstream.drain()

    async def down() -> None:
        while (data := await upstream_reader.read(65536)) and await fault.answered(writer):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.create_task(_until_broken(direction)) for direction in (up, down)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (writer, upstream):
            stream.close()
            with contextlib.suppress(OSError):
                await stream.wait_closed()


async def _until_broken(direction: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(OSError):
        await direction()
