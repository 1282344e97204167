"""The users that all others are: they send a workload's requests and count only right answers as successes."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import grpc
from grpc.experimental.gevent import init_gevent
from locust import FastHttpUser, User, constant, task

from benchmarks.grpc_client import METHOD, STATUSES
from benchmarks.judgement import EXPIRED, FAILED, outcome_of
from benchmarks.users.session import Session
from benchmarks.workloads import WORKLOADS

TIMEOUT_S = 10.0


class GatewayUser(FastHttpUser):
    """A user without pauses (a closed loop); ``workload`` names what it sends."""

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[str] = "http"
    workload: ClassVar[str] = ""
    model: ClassVar[str] = ""
    connection_timeout = TIMEOUT_S
    network_timeout = TIMEOUT_S

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.model = _model(cls.workload)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._session: Session = environment.tidegate
        self._workload, self._numbers = self._session.workload(self.workload)
        key = self._session.key
        self._authorization = {"Authorization": f"Bearer {key}"} if key else {}

    @task
    def call(self) -> None:
        """One request, its answer checked."""
        payload = self._workload.request(next(self._numbers))
        headers = {**self._authorization, **dict(payload.headers)}
        if payload.content_type:
            headers["Content-Type"] = payload.content_type
        began = self._session.begin(self.workload)
        with self.client.post(
            payload.path,
            data=payload.body,  # type: ignore[arg-type,unused-ignore]  # bytes are what it sends
            headers=headers,
            name=self.workload,
            catch_response=True,
        ) as response:
            expired = isinstance(getattr(response, "error", None), TimeoutError)
            status = EXPIRED if expired else int(response.status_code or FAILED)
            body = response.content or b""
            outcome, fault = outcome_of(self._workload, payload, status, body)
            self._session.end(self.workload, began, outcome, status, fault, len(payload.body), len(body))
            if outcome:
                response.failure(fault or f"{outcome.name.lower()}: HTTP {status}: {body[:120]!r}")


class GrpcUser(User):
    """``ModelInfer`` calls, one after the other, on a connection of its own; ``workload`` must have such messages."""

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[str] = "grpc"
    workload: ClassVar[str] = ""
    model: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.model = _model(cls.workload)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        init_gevent()  # in the process that makes the calls, before its first channel; more than once is once
        self._session: Session = environment.tidegate
        self._workload, self._numbers = self._session.workload(self.workload)
        key = self._session.key
        self._metadata = (("authorization", f"Bearer {key}"),) if key else None
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(self._session.grpc, options=options)
        self._infer = self._channel.unary_unary(METHOD)

    def on_stop(self) -> None:
        """Locust's: the user ends."""
        self._channel.close()

    @task
    def call(self) -> None:
        """One call, its answer checked."""
        payload = self._workload.request(next(self._numbers))
        message = payload.message or b""
        name = f"{self.workload} (gRPC)"
        began, wall, clock = self._session.begin(name), time.time(), time.perf_counter()
        try:
            body, status = self._infer(message, timeout=TIMEOUT_S, metadata=self._metadata), 200
        except grpc.RpcError as error:
            expired = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            body, status = str(error.details()).encode(), EXPIRED if expired else STATUSES.get(error.code(), FAILED)
        milliseconds = (time.perf_counter() - clock) * 1000
        outcome, fault = outcome_of(self._workload, payload, status, body)
        self._session.end(name, began, outcome, status, fault, len(message), len(body))
        problem = RuntimeError(fault or f"{outcome.name.lower()}: {status}: {body[:120]!r}") if outcome else None
        self.environment.events.request.fire(
            request_type="gRPC", name=name, response_time=milliseconds, response_length=len(body), exception=problem,
            context={}, response=None, start_time=wall, url=METHOD,
        )  # fmt: skip


def _model(workload: str) -> str:
    return str(getattr(WORKLOADS[workload], "model", workload)) if workload else ""
