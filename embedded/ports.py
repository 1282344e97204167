"""The ports that a server listens on, on loopback."""

from __future__ import annotations

import contextlib
import socket

from embedded.errors import PortInUseError

LOOPBACK = "127.0.0.1"
PORT_PURPOSES = ("HTTP", "gRPC", "metrics")


def choose_ports(wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """The wanted ports, each checked to be free; 0 becomes a free one. Raises :class:`PortInUseError`."""
    with contextlib.ExitStack() as sockets:
        chosen = []
        for purpose, port in zip(PORT_PURPOSES, wanted, strict=True):
            probe = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to listen on
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise PortInUseError(purpose, port) from error
            chosen.append(probe.getsockname()[1])
    http, grpc, metrics = chosen
    return http, grpc, metrics
