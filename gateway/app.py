"""The composition root: the only place that wires."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

import grpc.aio
import structlog
import uvloop

from gateway.access.access import open_access
from gateway.access.audit import AuditError
from gateway.access.pepper import PepperError
from gateway.admin.application import create_admin
from gateway.catalog import Catalog, CatalogError
from gateway.dialects.control import Control
from gateway.dialects.front import Front
from gateway.dialects.http import Dialect
from gateway.dialects.huggingface import HuggingFace
from gateway.dialects.kserve_grpc import KserveGrpc
from gateway.dialects.kserve_http import KserveHttp
from gateway.dialects.openai import OpenAI
from gateway.dialects.tei import Tei
from gateway.errors import GatewayError
from gateway.exports import export
from gateway.ledger.ledger import Ledger
from gateway.ledger.null import NullLedger
from gateway.ledger.prices import Prices, PricesError
from gateway.pipeline import Pipeline
from gateway.serving import Addresses, Listeners, PortInUse
from gateway.settings import Settings
from gateway.store.database import Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics
from gateway.triton.coalescer import Coalescer
from gateway.triton.pool import Pool

log = structlog.get_logger(__name__)

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
    ) -> None:
        self.settings = settings
        self.pipeline = pipeline
        self.draining = False
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
            missing["store"] = "the database does not answer"
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
        if path == "/admin" or path.startswith("/admin/"):
            await self._admin(scope, receive, send)
        else:
            await self._front(scope, receive, send)

    async def metrics_app(self, scope: Any, _receive: Any, send: Any) -> None:
        """ASGI of the admin listener: ``/metrics`` and nothing else."""
        found = scope["path"] == "/metrics" and scope["method"] in {"GET", "HEAD"}
        body = self.pipeline.metrics.render() if found else b"not found\n"
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Build a gateway and start its background work; on exit everything is flushed and closed.

    Raises :class:`StartupError`.
    """
    async with AsyncExitStack() as stack:
        try:
            catalog = Catalog.load(settings.model_repository, settings.model_names)
            prices = Prices.load(settings.prices_file)
            store = await Store.open(settings)
            stack.push_async_callback(store.close)
        except (CatalogError, PricesError, StoreError) as error:
            raise StartupError(str(error)) from error
        metrics = Metrics()
        pool = Pool(
            settings.triton_targets,
            connect_timeout_s=settings.triton_connect_timeout_s,
            health_interval_s=settings.triton_health_interval_s,
            eject_after=settings.triton_eject_after,
            max_outstanding=settings.triton_max_outstanding,
        )
        await pool.start()
        stack.push_async_callback(pool.stop)
        coalescer = Coalescer(
            pool,
            enabled=settings.coalesce,
            in_flight=settings.coalesce_in_flight,
            max_queue=settings.max_queue,
            on_batch=metrics.batch,
        )
        stack.push_async_callback(coalescer.close)
        ledger = Ledger(settings, store, prices, pool.statistics) if settings.metering else NullLedger()
        try:
            await ledger.start()
            stack.push_async_callback(ledger.stop)
            access = await stack.enter_async_context(open_access(store, settings, estimate=ledger.estimate))
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
        )
        try:
            await asyncio.get_running_loop().run_in_executor(executor, pipeline.prepare)
        except (GatewayError, OSError, ValueError) as error:
            raise StartupError(f"a model's files cannot be used: {error}") from error
        export(metrics, pool, coalescer, ledger, access)
        admin = create_admin(store, access, release=version("tidegate"))
        yield Gateway(settings, catalog, store, pool, ledger, pipeline, admin)


def run(settings: Settings, on_ready: Callable[[Addresses], None] = lambda _addresses: None) -> None:
    """Serve until SIGTERM or SIGINT. Raises :class:`StartupError`."""
    logs.configure(settings.log_level, json=settings.log_json)
    uvloop.run(serve(settings, on_ready))


async def serve(settings: Settings, on_ready: Callable[[Addresses], None]) -> None:
    """The same on a loop that runs already."""
    async with open_gateway(settings) as gateway:
        grpc_server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", 2**31 - 1),
                ("grpc.so_reuseport", 0),
            )
        )
        gateway.grpc_dialect.add_to(grpc_server)
        try:
            listeners = Listeners(settings, gateway, gateway.metrics_app, grpc_server)
        except PortInUse as error:
            raise StartupError(str(error)) from error

        def drain() -> None:
            gateway.draining = True

        await listeners.serve(on_ready=on_ready, on_drain=drain)
