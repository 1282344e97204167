"""A TCP proxy with toxics, between the gateway and one Triton: late, silent, cut off, or a byte at a time.

It runs on an event loop of its own in a thread, so that a busy test does not slow it down.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

_CHUNK = 65536


class Proxy:
    """Listens on a free port and forwards to ``target`` (host:port). ``start`` before use, ``stop`` once.

    The toxics are plain attributes; they hold for open connections too.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.latency_s = 0.0
        """Answers come this much later."""
        self.deaf = False
        """Connections are taken and kept, and nothing passes either way."""
        self.mute = False
        """Requests pass, answers do not."""
        self.slice_bytes = 0
        """Bytes of one packet, both ways; 0: as they come."""
        self.slice_requests = True
        """Whether requests are sliced too."""
        self.close_after_s = 0.0
        """The end of a connection is passed on this much later."""
        self.connections = 0
        """Taken so far."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._port = 0

    @property
    def address(self) -> str:
        """Where the gateway finds it."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> Proxy:
        """Listen; after :meth:`refuse` on the same port again."""
        if not self._thread.is_alive():
            self._thread.start()
        self._run(self._listen())
        return self

    def refuse(self) -> None:
        """Cut everything off and answer connections with RST, as a host without the server does."""
        self._run(self._close())

    def reset(self) -> None:
        """Cut every open connection off with RST; new ones are taken."""
        self._run(self._reset())

    def heal(self) -> None:
        """Take every toxic away."""
        self.latency_s, self.deaf, self.mute, self.slice_bytes, self.close_after_s = 0.0, False, False, 0, 0.0
        self.slice_requests = True

    def stop(self) -> None:
        """End it and its thread."""
        self._run(self._close())
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _reset(self) -> None:
        for writer in list(self._writers):
            _abort(writer)

    async def _end_tasks(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream, to_upstream = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(writer)
            return
        self._writers |= {writer, to_upstream}
        there = asyncio.create_task(self._pump(reader, to_upstream, answers=False))
        back = asyncio.create_task(self._pump(upstream, writer, answers=True))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(self.close_after_s)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            self._writers -= {writer, to_upstream}
            for end in (writer, to_upstream):
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(_CHUNK):
            if answers and self.latency_s:
                await asyncio.sleep(self.latency_s)
            while self.deaf or (answers and self.mute):  # noqa: ASYNC110 - plain attributes, set by another thread
                await asyncio.sleep(0.01)
            sliced = self.slice_bytes if answers or self.slice_requests else 0
            size = sliced or len(data)
            for begin in range(0, len(data), size):
                writer.write(data[begin : begin + size])
                await writer.drain()
                if sliced:
                    await asyncio.sleep(0)


class Road:
    """The way to one Triton's gRPC and HTTP ports, which suffer alike. What is done to it is done to both."""

    def __init__(self, grpc: str, http: str) -> None:
        self._proxies = (Proxy(grpc), Proxy(http))

    @property
    def address(self) -> str:
        """For a gateway that infers over HTTP."""
        return f"{self.grpc_address}/{self._proxies[1].address.rpartition(':')[2]}"

    @property
    def grpc_address(self) -> str:
        """For a gateway that does everything over gRPC."""
        return self._proxies[0].address

    def set(self, **toxics: float) -> None:
        """Attributes of :class:`Proxy`."""
        for proxy in self._proxies:
            for name, value in toxics.items():
                if not hasattr(proxy, name):
                    raise AttributeError(name)
                setattr(proxy, name, value)

    def start(self) -> Road:
        """Listen; after :meth:`refuse` on the same ports again."""
        for proxy in self._proxies:
            proxy.start()
        return self

    def refuse(self) -> None:
        """Cut everything off and answer connections with RST, as a host without the server does."""
        for proxy in self._proxies:
            proxy.refuse()

    def reset(self) -> None:
        """Cut every open connection off with RST; new ones are taken."""
        for proxy in self._proxies:
            proxy.reset()

    def heal(self) -> None:
        """Take every toxic away."""
        for proxy in self._proxies:
            proxy.heal()

    def stop(self) -> None:
        """End it and its threads."""
        for proxy in self._proxies:
            proxy.stop()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
