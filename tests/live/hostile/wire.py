"""Raw HTTP/1.1 over a socket: bytes as they are given, for requests that client libraries would repair."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 20.0


@dataclass
class Answer:
    """One response; its attributes are named as httpx names them."""

    status_code: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; what is not UTF-8 is replaced."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.content)


class Connection:
    """A TCP connection to ``url``'s host and port. A context manager."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.socket = socket.create_connection(self.address(url), timeout=timeout_s)
        self._buffer = b""

    @staticmethod
    def address(url: str) -> tuple[str, int]:
        """Host and port in ``url``."""
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, with what was not read."""
        self.socket.close()

    def reset_on_close(self) -> None:
        """Have :meth:`close` reset the connection instead of ending it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def send(self, *parts: bytes) -> None:
        """Send everything, as far as the server takes it: one that has answered early may have closed."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                self.socket.sendall(part)

    def read(self) -> Answer | None:
        """The next response (interim ones left out); None if the server closed without one."""
        while True:
            head = self._take_until(b"\r\n\r\n")
            if head is None:
                return None
            lines = head.split(b"\r\n")
            status = int(lines[0].split(b" ", 2)[1])
            if status >= 200:
                break
        pairs = [line.split(b":", 1) for line in lines[1:]]
        headers = httpx.Headers([(name.strip(), value.strip()) for name, value in pairs])
        return Answer(status, headers, self._body(headers))

    def read_all(self) -> list[Answer]:
        """Every response until the server closes."""
        answers = []
        while (answer := self.read()) is not None:
            answers.append(answer)
        return answers

    def is_closed(self) -> bool:
        """Whether the server closes the connection now, having sent nothing more. Waits for it."""
        return not self._buffer and self._receive() == b""

    def _body(self, headers: httpx.Headers) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while (size := self._take_until(b"\r\n")) is not None:
                length = int(size, 16)
                body += self._take(length)
                self._take(2)
                if not length:
                    break
            return body
        if "content-length" in headers:
            return self._take(int(headers["content-length"]))
        return self._take(None)

    def _take_until(self, mark: bytes) -> bytes | None:
        while mark not in self._buffer:
            block = self._receive()
            if not block:
                return None
            self._buffer += block
        found, self._buffer = self._buffer.split(mark, 1)
        return found

    def _take(self, length: int | None) -> bytes:
        while length is None or len(self._buffer) < length:
            block = self._receive()
            if not block:
                break
            self._buffer += block
        end = len(self._buffer) if length is None else length
        taken, self._buffer = self._buffer[:end], self._buffer[end:]
        return taken

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""


def talk(url: str, *parts: bytes, timeout_s: float = TIMEOUT_S) -> list[Answer]:
    """Send ``parts`` on a connection of their own; every answer until the server closes it."""
    with Connection(url, timeout_s) as connection:
        connection.send(*parts)
        return connection.read_all()


def request(method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """The bytes of one well-formed request that asks for the connection's end, unless ``headers`` say otherwise."""
    given = {"host": "gateway", "connection": "close"} | (headers or {})
    if body:
        given.setdefault("content-length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
