"""The composition root: the only place that wires."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
import uvloop

from gateway.access.access import Access, ModelChanges, open_access
from gateway.access.audit import AuditError
from gateway.access.idempotency import Idempotency
from gateway.access.pepper import PepperError
from gateway.admin.guard import Guard
from gateway.admin.guard import refuse as refuse_admin
from gateway.admin.late import Late
from gateway.catalog import Catalog, CatalogError
from gateway.dialects.control import Control
from gateway.dialects.front import Front
from gateway.dialects.http import Dialect
from gateway.dialects.huggingface import HuggingFace
from gateway.dialects.kserve_grpc import KserveGrpc
from gateway.dialects.kserve_http import KserveHttp
from gateway.dialects.openai import OpenAI
from gateway.dialects.tei import Tei
from gateway.errors import GatewayError, Unavailable
from gateway.exports import export
from gateway.http2.server import RpcServer
from gateway.http2.stream import Limits
from gateway.ledger.daily import DailyCheck
from gateway.ledger.ledger import Ledger
from gateway.ledger.null import NullLedger
from gateway.ledger.prices import Prices, PricesError
from gateway.pipeline import Pipeline
from gateway.serving import Addresses, Listeners, PortInUse, allow_connections
from gateway.settings import Settings
from gateway.store.database import Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics
from gateway.telemetry.tracing import Tracing, TracingError
from gateway.tls import Tls, TlsError, open_tls
from gateway.triton.coalescer import Coalescer, PatientCoalescer
from gateway.triton.pool import Pool

log = structlog.get_logger(__name__)

GC_THRESHOLDS = (20_000, 20, 50)

AsgiApp = Callable[[Any, Any, Any], Any]


class StartupError(Exception):
    """The gateway cannot start; the message is one line for the operator."""


class Gateway:
    """Everything of one running gateway. Made by :func:`open_gateway`."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        store: Store,
        pool: Pool,
        ledger: Ledger | NullLedger,
        pipeline: Pipeline,
        admin: AsgiApp,
        tls: Tls | None = None,
    ) -> None:
        self.settings = settings
        self.tls = tls
        self.pipeline = pipeline
        self.draining = False
        """Not ready any more, and every answer ends its connection; set by :meth:`drain`."""
        self.closing = False
        """Nothing new is begun."""
        self._catalog = catalog
        self._store = store
        self._pool = pool
        self._ledger = ledger
        self._admin = admin
        release = version("tidegate")
        described: list[Dialect] = [
            KserveHttp(pipeline, release), HuggingFace(pipeline), OpenAI(pipeline), Tei(pipeline, release),
        ]  # fmt: skip
        self._front = Front(pipeline, [*described, Control(described, self.missing, release)])
        self.grpc_dialect = KserveGrpc(pipeline, release)

    async def missing(self) -> dict[str, str]:
        """What keeps the gateway from serving: part → reason; empty when it is ready."""
        missing: dict[str, str] = {}
        if self.draining:
            missing["gateway"] = "shutting down"
        if not await self._store.ping():
            missing["store"] = self._store.problem or "the database does not answer"
        if not self._ledger.available:
            missing["journal"] = "usage records cannot be made durable"
        required = self.settings.model_names or tuple(card.name for card in self._catalog if card.built)
        unready = sorted(set(required) - self._pool.ready_models())
        if unready or not required:
            missing["models"] = ", ".join(unready) or "none is built"
        return missing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI: ``/admin`` is the control plane's application, everything else the hot path's."""
        path = scope["path"]
        if self.draining:
            send = _ending_connection(send)
            scope = {**scope, "extensions": {}}  # everything is sent by way of it
            if self.closing and not path.startswith("/healthz/"):
                await self._refuse_new(scope, send)
                return
        if path == "/admin" or path.startswith("/admin/"):
            await self._admin(scope, receive, send)
        else:
            await self._front(scope, receive, send)

    def drain(self) -> None:
        """Be not ready, and let clients go elsewhere with their next request."""
        self.draining = self.pipeline.draining = True

    def close(self) -> None:
        """Begin nothing new: 503 for what still arrives."""
        self.closing = True

    async def _refuse_new(self, scope: Any, send: Any) -> None:
        client = scope.get("client")
        error = Unavailable("the gateway is shutting down", retry_after_s=1.0)
        headers, body = self.refuse(scope["raw_path"], scope["headers"], client[0] if client else "", error)
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refuse(
        self, path: bytes, headers: list[tuple[bytes, bytes]], client_address: str, error: GatewayError
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """How the transport answers what it cannot parse, in the form of what was called."""
        if path == b"/admin" or path.startswith(b"/admin/"):
            return refuse_admin(error)
        return self._front.refuse(path, headers, client_address, error)

    async def metrics_app(self, scope: Any, _receive: Any, send: Any) -> None:
        """ASGI of the admin listener: ``/metrics``, and ``/healthz/*`` for probes that cannot show a certificate."""
        status, body, media_type = 404, b"not found\n", "text/plain; charset=utf-8"
        if scope["method"] in {"GET", "HEAD"}:
            if scope["path"] == "/metrics":
                status, body, media_type = 200, self.pipeline.metrics.render(), CONTENT_TYPE
            elif scope["path"] == "/healthz/live":
                status, body = 200, b"live\n"
            elif scope["path"] == "/healthz/ready":
                missing = await self.missing()
                status, body = (503, f"missing: {', '.join(missing)}\n".encode()) if missing else (200, b"ready\n")
        headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Build a gateway and start its background work; on exit everything is flushed and closed.

    Raises :class:`StartupError`.
    """
    async with AsyncExitStack() as stack:
        try:
            tls = open_tls(settings)
            catalog = Catalog.load(settings.model_repository, settings.model_names)
            prices = Prices.load(settings.prices_file)
            store = await Store.open(settings, wait=True)
            stack.push_async_callback(store.close)
        except (CatalogError, PricesError, StoreError, TlsError) as error:
            raise StartupError(str(error)) from error
        metrics = Metrics()
        tracing = _tracing(settings)
        if tracing is not None:
            metrics.on_finished = tracing.finished
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        pool = Pool(
            settings.triton_targets,
            connect_timeout_s=settings.triton_connect_timeout_s,
            health_interval_s=settings.triton_health_interval_s,
            eject=settings.triton_eject,
            eject_after=settings.triton_eject_after,
            retry_ratio=settings.triton_retry_ratio,
            max_outstanding=settings.triton_max_outstanding,
            cancel_since=settings.triton_cancel_since,
        )
        await pool.start()
        stack.push_async_callback(pool.stop)
        coalescer = (Coalescer if settings.cancel else PatientCoalescer)(
            pool,
            enabled=settings.coalesce,
            in_flight=settings.coalesce_in_flight,
            max_queue=settings.max_queue,
            shed=settings.shed,
            retry=settings.coalesce_retry,
            on_batch=metrics.batch,
            servers=pool.servers,
        )
        stack.push_async_callback(coalescer.close)
        ledger = _ledger(settings, store, prices, pool) if settings.metering else NullLedger()
        try:
            await ledger.start()
            stack.push_async_callback(ledger.stop)
            access = await stack.enter_async_context(open_access(store, settings, estimate=ledger.estimate))
            daily = DailyCheck(store)
            await daily.start()
            stack.push_async_callback(daily.stop)
            idempotency = Idempotency(store, settings)
            await idempotency.start()
            stack.push_async_callback(idempotency.stop)
        except (AuditError, PepperError) as error:
            raise StartupError(str(error)) from error
        except GatewayError as error:
            raise StartupError(error.message) from error
        except OSError as error:
            raise StartupError(f"no journal can be kept in {settings.data_dir}: {error.strerror or error}") from error
        executor = ThreadPoolExecutor(settings.preprocess_threads, thread_name_prefix="preprocess")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        pipeline = Pipeline(
            settings=settings,
            catalog=catalog,
            pool=pool,
            coalescer=coalescer,
            authenticator=access.authenticator,
            admission=access.admission,
            ledger=ledger,
            metrics=metrics,
            executor=executor,
            idempotency=idempotency,
            changes=ModelChanges(access.audit),
            tracing=tracing,
        )
        try:
            await asyncio.get_running_loop().run_in_executor(executor, pipeline.prepare)
        except (GatewayError, OSError, ValueError) as error:
            raise StartupError(f"a model's files cannot be used: {error}") from error
        export(metrics, pool, coalescer, ledger, access, idempotency, daily, tls)
        admin = Guard(Late(partial(_administration, store, access)), access.authenticator)
        yield Gateway(settings, catalog, store, pool, ledger, pipeline, admin, tls)


def _administration(store: Store, access: Access) -> AsgiApp:
    # Imported here: memory that a gateway which nobody administers never needs.
    from gateway.admin.application import create_application  # noqa: PLC0415

    return create_application(store, access, release=version("tidegate"))


def _tracing(settings: Settings) -> Tracing | None:
    if not settings.otlp_endpoint:
        return None
    try:
        return Tracing(settings.otlp_endpoint, ratio=settings.otlp_ratio, release=version("tidegate"))
    except TracingError as error:
        raise StartupError(str(error)) from error


def _ledger(settings: Settings, store: Store, prices: Prices, pool: Pool) -> Ledger:
    def max_batch(model: str) -> int:
        try:
            return pool.signature(model).max_batch_size
        except GatewayError:
            return 1  # not ready now: a later reading has it

    return Ledger(settings, store, prices, pool.statistics, max_batch=max_batch)


def run(settings: Settings, on_ready: Callable[[Addresses], None] = lambda _addresses: None) -> None:
    """Serve until SIGTERM or SIGINT. Raises :class:`StartupError`."""
    logs.configure(settings.log_level, json=settings.log_json)
    connections = allow_connections(settings.max_connections)
    uvloop.run(serve(settings.model_copy(update={"max_connections": connections}), on_ready))


async def serve(settings: Settings, on_ready: Callable[[Addresses], None]) -> None:
    """The same on a loop that runs already."""
    async with open_gateway(settings) as gateway:
        grpc_server = RpcServer(
            gateway.grpc_dialect.methods(),
            Limits(
                max_streams=settings.grpc_max_streams,
                held_limit=2 * settings.max_body_bytes,
                header_timeout_s=settings.header_timeout_s,
                body_timeout_s=settings.body_timeout_s,
                idle_s=settings.keep_alive_s,
            ),
            max_message_bytes=settings.max_body_bytes,
            max_held_bytes=settings.max_buffered_bytes,
            max_connections=settings.max_connections,
        )
        try:
            listeners = Listeners(
                settings, gateway, gateway.metrics_app, grpc_server, gateway.tls, refuse=gateway.refuse
            )
        except PortInUse as error:
            raise StartupError(str(error)) from error

        _calm_collector()
        await listeners.serve(on_ready=on_ready, on_drain=gateway.drain, on_close=gateway.close)


def _ending_connection(send: Any) -> Any:
    """``send`` with ``Connection: close`` in every answer: the client's next request opens a new connection."""

    async def send_last(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_last


def _calm_collector() -> None:
    """Let the cyclic garbage collector look rarely, and never at what start-up made.

    A request makes no cycles, but its objects live across awaits: at the default threshold the collector walked
    them, and everything loaded at start, many times a second for nothing (docs/decisions/0003).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
