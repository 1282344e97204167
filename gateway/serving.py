"""The listeners: HTTP, gRPC and the admin one, on one event loop; signals, and the drain on the way out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import structlog
import uvicorn

from gateway.settings import Settings
from gateway.transport import TransportLimits, end_late_connections, protocol_class

log = structlog.get_logger(__name__)


class PortInUse(Exception):
    """An address that cannot be bound; the message names it."""


@dataclass(slots=True, frozen=True)
class Addresses:
    """Where the listeners ended up (port 0 in the settings picks a free one)."""

    http: str
    grpc: str
    admin: str


class Listeners:
    """Binds everything before anything is served, so that a port in use leaves nothing half-started."""

    def __init__(self, settings: Settings, app: Any, admin_app: Any, grpc_server: grpc.aio.Server) -> None:
        self._settings = settings
        self._grpc_server = grpc_server
        sockets: list[socket.socket] = []
        try:
            sockets.append(_bind(settings.host, settings.port, settings.backlog))
            sockets.append(_bind(settings.admin_host, settings.admin_port, settings.backlog))
            grpc_port = _bind_grpc(grpc_server, settings.host, settings.grpc_port)
        except PortInUse:
            for open_socket in sockets:
                open_socket.close()
            raise
        self._sockets = sockets
        self._http = _Server(_config(app, settings))
        self._admin = _Server(_config(admin_app, settings))
        self.addresses = Addresses(_address(sockets[0]), f"{settings.host}:{grpc_port}", _address(sockets[1]))

    async def serve(self, *, on_ready: Callable[[Addresses], None], on_drain: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; then be not ready, go on for ``shutdown_delay_s``, and drain."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self._grpc_server.start()
        servers = [
            asyncio.create_task(self._http.serve([self._sockets[0]])),
            asyncio.create_task(self._admin.serve([self._sockets[1]])),
        ]
        log.info("gateway.listening", http=self.addresses.http, grpc=self.addresses.grpc, admin=self.addresses.admin)
        on_ready(self.addresses)
        stopped = asyncio.create_task(stop.wait())
        sweeper = asyncio.create_task(end_late_connections(lambda: self._http.server_state.connections))
        await asyncio.wait([stopped, *servers], return_when=asyncio.FIRST_COMPLETED)
        log.info("gateway.draining")
        on_drain()
        await asyncio.sleep(self._settings.shutdown_delay_s)
        self._http.should_exit = True
        await asyncio.gather(servers[0], self._grpc_server.stop(self._settings.drain_s))
        self._admin.should_exit = True
        await servers[1]
        stopped.cancel()
        sweeper.cancel()
        for open_socket in self._sockets:
            open_socket.close()


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: there are several servers here, and one owner of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    limits = TransportLimits(
        max_connections=settings.max_connections,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )
    return uvicorn.Config(
        app,
        interface="asgi3",
        loop="none",
        http=protocol_class(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=int(settings.drain_s),
        backlog=settings.backlog,
    )


def _bind(host: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    bound.setblocking(False)
    return bound


def _bind_grpc(server: grpc.aio.Server, host: str, port: int) -> int:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(target)
    except RuntimeError as error:
        raise PortInUse(f"cannot listen on {host}:{port}: address already in use") from error
    if not bound:
        raise PortInUse(f"cannot listen on {host}:{port}: address already in use")
    return int(bound)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
