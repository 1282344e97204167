"""The front door on a real HTTP server, over the real pipeline, tasks and tiny models; keys and ledger
are the simplest that keep their promises.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, cast

import uvicorn

from gateway.catalog import Catalog
from gateway.dialects.front import Front
from gateway.dialects.huggingface import HuggingFace
from gateway.dialects.kserve_http import KserveHttp
from gateway.dialects.openai import OpenAI
from gateway.dialects.tei import Tei
from gateway.errors import GatewayError, Unauthenticated
from gateway.pipeline import Pipeline
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.triton.coalescer import Coalescer
from gateway.triton.pool import Pool
from gateway.types import Call, Principal, Units
from tests.gateway.tasks.models import LocalModels

KEY = "tg_test_key"
NARROW_KEY = "tg_test_narrow"
"""May use ``sentiment`` only."""


class Keys:
    """Two keys."""

    async def authenticate(self, call: Call) -> Principal:
        if call.credential not in {KEY, NARROW_KEY}:
            raise Unauthenticated("the key is not valid")
        models = frozenset({"sentiment"}) if call.credential == NARROW_KEY else None
        return Principal("1", "project", "organisation", frozenset({"infer"}), models)


class Turnstile:
    """Admits everybody, unless it is told what to refuse the next one with: when it asks, or when it enters."""

    def __init__(self) -> None:
        self.refusal: GatewayError | None = None
        self.early_refusal: GatewayError | None = None
        self.entered = self.left = 0

    def max_timeout_s(self, principal: Principal) -> float | None:
        return None

    def check(self, call: Call) -> None:
        refusal, self.early_refusal = self.early_refusal, None
        if refusal is not None:
            raise refusal

    def max_priority(self, principal: Principal) -> int | None:
        return None

    async def enter(self, call: Call) -> Turnstile:
        refusal, self.refusal = self.refusal, None
        if refusal is not None:
            raise refusal
        self.entered += 1
        return self

    def leave(self, call: Call) -> None:
        self.left += 1


class Records:
    """Keeps what was finished."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, str, Units, int]] = []

    async def reserve(self, call: Call) -> None:
        pass

    async def finish(
        self,
        call: Call,
        state: Literal["completed", "failed", "client_closed"],
        status: int,
        error: str | None,
        *,
        delivered: bool = False,
    ) -> None:
        self.finished.append((call.model, state, call.units, status))

    def estimate(self, model: str, units: Units, elapsed_ns: int = 0) -> tuple[int, float]:
        return 1_000, 1e-9


class Served:
    """The running server and what stands behind it."""

    def __init__(self, catalog: Catalog) -> None:
        self.models = LocalModels(catalog)
        self.records = Records()
        self.turnstile = Turnstile()
        self.url = ""
        self._executor = ThreadPoolExecutor(2)
        settings = Settings()
        pipeline = Pipeline(
            settings=settings,
            catalog=catalog,
            pool=cast(Pool, self.models),
            coalescer=cast(Coalescer, self.models),
            authenticator=Keys(),
            admission=self.turnstile,
            ledger=self.records,
            metrics=Metrics(),
            executor=self._executor,
        )
        self.front = Front(
            pipeline, [KserveHttp(pipeline, "0.0.0"), HuggingFace(pipeline), OpenAI(pipeline), Tei(pipeline, "0.0.0")]
        )

    @contextmanager
    def running(self) -> Iterator[Served]:
        """Listen on a free port until the block ends."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self._application, log_level="warning", lifespan="off", interface="asgi3")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join(10)
            listener.close()
            self._executor.shutdown()

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        await self.front(scope, receive, send)
