"""A server in a process of its own for the load generator's self-tests: it answers at once, but for one pause.

``python pause_server.py [SECONDS_BEFORE SECONDS_OF_PAUSE]``; prints its port. The pause begins so many
seconds after the first request and holds up everything, as a garbage collection or a lock would.
"""

from __future__ import annotations

import asyncio
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"


class Pauses:
    def __init__(self, before_s: float, pause_s: float) -> None:
        self._before_s = before_s
        self._pause_s = pause_s
        self._armed = False

    def first_request(self) -> None:
        if not self._armed and self._pause_s:
            self._armed = True
            asyncio.get_running_loop().call_later(self._before_s, time.sleep, self._pause_s)


class Server(asyncio.Protocol):
    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pauses.first_request()
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            found = head.find(b"\r\ncontent-length:")
            size = int(head[found + 17 :].split(b"\r", 1)[0]) if found >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            body = self._buffer[end + 4 : end + 4 + size][-256:]
            self._buffer = self._buffer[end + 4 + size :]
            self._transport.write(ANSWER % len(body) + body)  # type: ignore[attr-defined]


async def main(before_s: float, pause_s: float) -> None:
    pauses = Pauses(before_s, pause_s)
    server = await asyncio.get_running_loop().create_server(lambda: Server(pauses), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*(float(value) for value in sys.argv[1:3]) if len(sys.argv) > 2 else (0.0, 0.0)))
