"""The listeners: HTTP, gRPC and the admin one, on one event loop; signals, and the drain on the way out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import structlog
import uvicorn

from gateway.http2.server import RpcServer
from gateway.settings import Settings
from gateway.tls import ListenerContext, Tls
from gateway.transport import Refuse, TransportLimits, end_late_connections, protocol_class, refuse_plainly

log = structlog.get_logger(__name__)

_FAREWELL_S = 0.3
"""For requests that are under way on kept connections: they are answered 503, and not by a connection that ends."""

OTHER_FILES = 128
"""Open files besides clients' connections: database, journal, Triton, Redis, models, threads."""
MIN_CONNECTIONS = 8

# A warning for every request that is not HTTP would let anybody fill the disk; they are counted instead.
logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


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

    def __init__(
        self,
        settings: Settings,
        app: Any,
        admin_app: Any,
        grpc_server: RpcServer,
        tls: Tls | None = None,
        *,
        refuse: Refuse = refuse_plainly,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._grpc_server = grpc_server
        sockets: list[socket.socket] = []
        try:
            sockets.append(_bind(settings.host, settings.port, settings.backlog))
            sockets.append(_bind(settings.admin_host, settings.admin_port, settings.backlog))
            sockets.append(_bind(settings.host, settings.grpc_port, settings.backlog))
        except PortInUse:
            for open_socket in sockets:
                open_socket.close()
            raise
        if tls is not None:
            tls.grpc_context.open_connections = lambda: len(grpc_server.connections)
        grpc_server.listen_on(sockets[2], tls.grpc_context if tls else None, settings.tls_handshake_timeout_s)
        self._sockets = sockets
        self._http = _Server(
            _config(app, settings, refuse), tls.context if tls else None, settings.tls_handshake_timeout_s
        )
        self._admin = _Server(_config(admin_app, settings, refuse_plainly))
        self.addresses = Addresses(_address(sockets[0]), _address(sockets[2]), _address(sockets[1]))

    async def serve(
        self,
        *,
        on_ready: Callable[[Addresses], None],
        on_drain: Callable[[], None],
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until SIGTERM or SIGINT; then be not ready (``on_drain``), go on for ``shutdown_delay_s``, begin
        nothing new (``on_close``), and let what is in flight end.
        """
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if self._tls is not None:
            loop.add_signal_handler(signal.SIGHUP, self._tls.reload)
        await self._grpc_server.start()
        servers = [
            asyncio.create_task(self._http.serve([self._sockets[0]])),
            asyncio.create_task(self._admin.serve([self._sockets[1]])),
        ]
        log.info("gateway.listening", http=self.addresses.http, grpc=self.addresses.grpc, admin=self.addresses.admin)
        on_ready(self.addresses)
        stopped = asyncio.create_task(stop.wait())
        background = [
            asyncio.create_task(
                end_late_connections(
                    lambda: chain(self._http.server_state.connections, self._admin.server_state.connections)
                )
            )
        ]
        if self._tls is not None:
            background.append(asyncio.create_task(self._tls.watch()))
        await asyncio.wait([stopped, *servers], return_when=asyncio.FIRST_COMPLETED)
        log.info("gateway.draining")
        on_drain()
        await asyncio.sleep(self._settings.shutdown_delay_s)
        on_close()
        if self._http.server_state.connections:
            await asyncio.sleep(_FAREWELL_S)
        self._http.should_exit = True
        await asyncio.gather(servers[0], self._grpc_server.stop(self._settings.drain_s))
        self._admin.should_exit = True
        await servers[1]
        for task in (stopped, *background):
            task.cancel()
        for open_socket in self._sockets:
            open_socket.close()


def allow_connections(wanted: int) -> int:
    """How many connections each of the HTTP and gRPC listeners may have: ``wanted``, or what open files allow.

    Raises this process's soft limit of open files as far as the hard one lets it. Many systems start processes with
    1024, less than the connections that may be open: accepting would fail where a refusal is due, and so would
    opening the database or a connection to Triton.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 2 * wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= files:
        return wanted
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    allowed = min(wanted, max(MIN_CONNECTIONS, (files - OTHER_FILES) // 2))
    if allowed < wanted:
        log.warning("gateway.few_files", files=files, connections=allowed, wanted=wanted)
    return allowed


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: there are several servers here, and one owner of signals."""

    def __init__(
        self, config: uvicorn.Config, tls: ListenerContext | None = None, handshake_timeout_s: float = 10.0
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. With TLS not by uvicorn's own means, which leave a slow handshake a minute."""
        if self._tls is None or sockets is None:
            await super().startup(sockets)
            return
        self._tls.open_connections = lambda: len(self.server_state.connections)
        loop: Any = asyncio.get_running_loop()  # uvloop's knows ssl_shutdown_timeout, on every Python
        config = self.config

        def create_protocol() -> Any:
            made: Any = config.http_protocol_class
            return made(config=config, server_state=self.server_state, app_state=self.lifespan.state)

        self.servers = [
            await loop.create_server(
                create_protocol,
                sock=bound,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=self._handshake_timeout_s,
                backlog=config.backlog,
            )
            for bound in sockets
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def _config(app: Any, settings: Settings, refuse: Refuse) -> uvicorn.Config:
    limits = TransportLimits(
        max_connections=settings.max_connections,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )
    return uvicorn.Config(
        app,
        interface="asgi3",
        loop="none",
        http=protocol_class(limits, refuse),
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


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
