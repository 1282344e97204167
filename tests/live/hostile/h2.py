"""HTTP/2 frames by hand, for what a gRPC client library would never send."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str, *more: tuple[str, str]) -> bytes:
    """A gRPC call's header block: literals without indexing and without Huffman coding (RFC 7541, 6.2.2)."""
    pairs = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "gateway"),
        ("content-type", "application/grpc"), ("te", "trailers"), *more,
    ]  # fmt: skip
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _text(value: str) -> bytes:
    raw = value.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, digits = len(raw) - 127, b""
    while rest >= 128:
        digits += bytes([rest % 128 + 128])
        rest //= 128
    return b"\x7f" + digits + bytes([rest]) + raw


def connect(address: str) -> socket.socket:
    """A connection that has sent preface and settings."""
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(PREFACE + frame(SETTINGS, 0))
    return connection


def read_frames(connection: socket.socket, wait_s: float) -> list[tuple[int, int, bytes]]:
    """(kind, stream, payload) of all frames until the peer closes or is silent for ``wait_s``."""
    connection.settimeout(wait_s)
    received = b""
    try:
        while block := connection.recv(65536):
            received += block
    except (TimeoutError, ConnectionResetError):
        pass
    found = []
    while len(received) >= 9:
        length = int.from_bytes(received[:3], "big")
        stream = int.from_bytes(received[5:9], "big")
        found.append((received[3], stream, received[9 : 9 + length]))
        received = received[9 + length :]
    return found


def read_answer(connection: socket.socket, stream: int, wait_s: float) -> list[bytes]:
    """Header blocks (of headers and of trailers) of one stream, until it or the connection ends, or is silent."""
    connection.settimeout(wait_s)
    received, blocks = b"", []
    while True:
        while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3], "big"):
            length, kind, flags = int.from_bytes(received[:3], "big"), received[3], received[4]
            number, payload = int.from_bytes(received[5:9], "big"), received[9 : 9 + length]
            received = received[9 + length :]
            if kind == HEADERS and number == stream:
                blocks.append(payload)
            if number == stream and (kind == RST_STREAM or (kind in {HEADERS, DATA} and flags & END_STREAM)):
                return blocks
        try:
            block = connection.recv(65536)
        except (TimeoutError, ConnectionResetError):
            return blocks
        if not block:
            return blocks
        received += block
