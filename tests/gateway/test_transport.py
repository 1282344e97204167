"""The transport under raw sockets: a real server, bytes that no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from gateway.transport import TransportLimits, end_late_connections, protocol_class
from gateway.types import WHOLE_ANSWER

LIMITS = TransportLimits(
    max_connections=8, max_header_bytes=4096, max_headers=20, header_timeout_s=0.4, body_timeout_s=0.4
)


class Echo:
    """Answers the path and the body's length; counts the requests that reached it."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        body = f"{scope['path']} {size}".encode()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
        )
        await send({"type": "http.response.body", "body": body})


class Running:
    def __init__(self, app: Echo | None = None) -> None:
        self.app = app or Echo()
        config = uvicorn.Config(
            self.app, http=protocol_class(LIMITS), ws="none", lifespan="off", log_config=None, interface="asgi3"
        )
        self.server = uvicorn.Server(config)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            sweeper = asyncio.create_task(end_late_connections(lambda: self.server.server_state.connections, 0.05))
            await self.server.serve([self._socket])
            sweeper.cancel()

        asyncio.run(serve())

    def __enter__(self) -> Running:
        self._thread.start()
        while not self.server.started:
            time.sleep(0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join()
        self._socket.close()

    def talk(self, *parts: bytes) -> bytes:
        """Send ``parts``, and read until the server closes or one answer with its length is there."""
        with socket.create_connection(self.address, timeout=10) as client:
            for part in parts:
                with contextlib.suppress(OSError):
                    client.sendall(part)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while block := client.recv(65536):
                    received += block
            return received


@pytest.fixture
def running() -> Iterator[Running]:
    with Running() as server:
        yield server


def get(path: bytes = b"/ok", close: bool = True, **_: Any) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + (b"Connection: close\r\n" if close else b"") + b"\r\n"


def is_healthy(running: Running) -> bool:
    return running.talk(get()).endswith(b"/ok 0")


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: five\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Content-Length : 5\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"X: a\r\n folded\r\nContent-Length: 5\r\n",
        b"X: a\x00b\r\n",
        b"No-Colon\r\n",
    ],
)
def test_ambiguous_framing_is_refused_and_nothing_is_smuggled(running: Running, headers: bytes) -> None:
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = running.talk(b"POST /first HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"connection: close" in answer.lower()
    assert "/smuggled" not in running.app.paths
    assert is_healthy(running)


def test_bad_chunks_are_refused(running: Running) -> None:
    for chunk in (b"zz\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"5;a=b\nGET /smuggled HTTP/1.1\r\n\r\n"):
        answer = running.talk(b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        assert b"400" in answer.split(b"\r\n")[0] or answer == b"", answer
        assert "/smuggled" not in running.app.paths
    assert is_healthy(running)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nBig: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\r\nBig: " + b"a" * 200_000,
    ],
)
def test_headers_that_are_too_large_are_431(running: Running, request_bytes: bytes) -> None:
    assert running.talk(request_bytes).startswith(b"HTTP/1.1 431 ")
    assert is_healthy(running)


def test_a_large_body_that_comes_with_its_headers_is_not_a_large_header(running: Running) -> None:
    body = b"x" * 100_000
    answer = running.talk(b"POST /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n" + body)
    assert answer.endswith(b"/b 100000")


def test_slow_headers_are_ended(running: Running) -> None:
    assert running.talk(b"GET / HTTP/1.1\r\nHost:").startswith(b"HTTP/1.1 408 ")
    assert running.talk(b"").startswith(b"HTTP/1.1 408 ")
    assert is_healthy(running)


def test_a_body_that_never_comes_does_not_hold_its_connection(running: Running) -> None:
    assert running.talk(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc") == b""
    assert is_healthy(running)


def test_connections_over_the_cap_get_503_and_those_within_go_on(running: Running) -> None:
    idle = [socket.create_connection(running.address) for _ in range(LIMITS.max_connections)]
    try:
        while len(running.server.server_state.connections) < LIMITS.max_connections:
            time.sleep(0.001)
        answer = running.talk(get())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in answer
        idle[0].sendall(get())
        assert idle[0].recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in idle:
            connection.close()


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    answer = running.talk(get(b"/one", close=False) + get(b"/two", close=False) + get(b"/three"))
    assert answer.index(b"/one 0") < answer.index(b"/two 0") < answer.index(b"/three 0")


def test_a_kept_connection_may_be_idle_longer_than_headers_may_take(running: Running) -> None:
    with socket.create_connection(running.address, timeout=10) as client:
        client.sendall(get(close=False))
        read_until(client, b"/ok 0")
        (connection,) = running.server.server_state.connections
        connection.end_if_late(time.monotonic() + 100 * LIMITS.header_timeout_s)
        client.sendall(get())
        read_until(client, b"/ok 0")


def read_until(client: socket.socket, wanted: bytes) -> None:
    received = b""
    while wanted not in received:
        block = client.recv(65536)
        assert block, received
        received += block


def test_an_upgrade_is_ignored_with_its_body(running: Running) -> None:
    head = b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 10\r\n\r\n"
    for parts in ((head + b"0123456789" + get(),), (head, b"0123456789", get()), (head + b"01", b"23456789" + get())):
        answer = running.talk(*parts)
        assert b"/up 10" in answer
        assert answer.endswith(b"/ok 0")


def test_the_body_of_an_upgrade_is_not_the_next_request(running: Running) -> None:
    body = get(b"/smuggled")
    head = b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    running.talk(head, body, get())
    running.talk(head + body + get())
    assert "/smuggled" not in running.app.paths


def test_too_many_chunks_and_endless_extensions_are_413(running: Running) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in running.talk(head + b"1\r\na\r\n" * (LIMITS.max_chunks + 1) + b"0\r\n\r\n").split(b"\r\n")[0]
    assert b" 413 " in running.talk(head + b"1;" + b"x" * 2 * LIMITS.max_framing_bytes).split(b"\r\n")[0]
    assert running.talk(head + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n" + get()).endswith(b"/ok 0")


def test_a_refusal_waits_for_the_answers_before_it(running: Running) -> None:
    answer = running.talk(get(b"/one", close=False) + b"GARBAGE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in answer


def test_connect_and_other_versions(running: Running) -> None:
    answer = running.talk(b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n" + get())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"allow: " in answer
    for line in (b"GET /ok\r\n\r\n", b"GET /ok HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        assert running.talk(line).startswith(b"HTTP/1.1 400 ")
    assert "/ok" not in running.app.paths


def test_a_client_still_sending_reads_why_it_was_refused(running: Running) -> None:
    answer = running.talk(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", *[b"x" * 100_000] * 50)
    assert answer.startswith(b"HTTP/1.1 400 ")


# --- whole answers


class AtOnce(Echo):
    """Answers by way of the extension; the path says what it tries."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        await receive()
        value = b"a\r\nx-injected: 1" if scope["path"] == "/inject" else b"a"
        try:
            assert scope["extensions"][WHOLE_ANSWER]["send"](200, [(b"x-a", value)], scope["path"].encode())
        except RuntimeError as error:
            self.failures.append(str(error))
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})


@pytest.fixture
def at_once() -> Iterator[Running]:
    running = Running(AtOnce())
    with running:
        yield running


def test_an_answer_in_one_write_keeps_the_connection(at_once: Running) -> None:
    get = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
    received = at_once.talk(get % b"/one" + get % b"/two" + b"GET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    answers = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [b"/one", b"/two", b"/3"]
    assert [b"connection: close" in answer for answer in answers] == [False, False, True]
    assert all(b"\r\nx-a: a\r\n" in answer for answer in answers)


def test_an_answer_in_one_write_to_head_has_no_body(at_once: Running) -> None:
    received = at_once.talk(b"HEAD /one HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: 4" in head
    assert body == b""


def test_a_header_cannot_bring_another_into_an_answer_in_one_write(at_once: Running) -> None:
    received = at_once.talk(b"GET /inject HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert b"x-injected" not in received
    assert at_once.app.failures == ["Invalid HTTP header value."]  # type: ignore[attr-defined]
