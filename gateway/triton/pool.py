"""Several Triton servers as one: per-model readiness, least-outstanding choice, ejection and slow
return of failing servers, one retry on another host where nothing was executed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import structlog
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, NotFound, Unavailable
from gateway.triton.client import NotExecuted, TritonServer
from gateway.triton.signature import Signature, from_config
from gateway.triton.statistics import ModelStatistics
from gateway.types import InferenceRequest, InferenceResult

log = structlog.get_logger(__name__)

_MAX_EJECTION_S = 30.0


class Member:
    """A server in the pool and what is known of it."""

    def __init__(self, server: TritonServer, max_outstanding: int) -> None:
        self.server = server
        self.outstanding = 0
        self.failures = 0
        """Consecutive ones."""
        self.ejections = 0
        self.ejected_until = 0.0
        self.ready: frozenset[tuple[str, str]] = frozenset()
        self._max_outstanding = max_outstanding
        self._allowance = max_outstanding

    @property
    def name(self) -> str:
        """host:port of its gRPC endpoint."""
        return self.server.target

    @property
    def up(self) -> bool:
        """Whether the last probe found it serving."""
        return bool(self.ready)

    def can_take(self, now: float) -> bool:
        """Whether another request may be sent to it."""
        return now >= self.ejected_until and self.outstanding < self._allowance

    def succeeded(self) -> None:
        """A call was answered: forget failures, and let a returning server take twice as much."""
        self.failures = 0
        self.ejections = 0
        self._allowance = min(self._max_outstanding, self._allowance * 2)

    def failed(self, eject_after: int, now: float) -> None:
        """A call broke: after ``eject_after`` in a row the server rests, longer each time."""
        self.failures += 1
        if self.failures >= eject_after:
            self.failures = 0
            self.ejected_until = now + min(_MAX_EJECTION_S, 1.0 * 2**self.ejections)
            self.ejections += 1
            self._allowance = 1

    def lost(self) -> None:
        """It cannot be reached: it serves nothing until a probe finds it again, and returns slowly."""
        if self.ready:
            log.warning("triton.lost", server=self.name)
        self.ready = frozenset()
        self._allowance = 1


class Pool:
    """The Triton servers behind this gateway. ``start`` before use; ``stop`` once."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        connect_timeout_s: float = 2.0,
        health_interval_s: float = 1.0,
        eject_after: int = 3,
        max_outstanding: int = 256,
    ) -> None:
        self.members = [Member(TritonServer(target), max_outstanding) for target in targets]
        self._connect_timeout_s = connect_timeout_s
        self._health_interval_s = health_interval_s
        self._eject_after = eject_after
        self._signatures: dict[tuple[str, str], Signature] = {}
        self._newest: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Probe every server once, then keep probing."""
        await asyncio.gather(*(self._probe(member) for member in self.members))
        self._tasks = [asyncio.create_task(self._watch(member)) for member in self.members]

    async def stop(self) -> None:
        """Stop probing and close the channels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(member.server.close() for member in self.members))

    # --- what is served

    def ready_models(self) -> frozenset[str]:
        """Names that at least one server can infer now."""
        return frozenset(self._newest)

    def versions(self, model: str) -> list[str]:
        """Ready versions of ``model``, ascending."""
        found = {version for member in self.members for name, version in member.ready if name == model}
        return sorted(found, key=_version_order)

    def signature(self, model: str, version: str = "") -> Signature:
        """What ``model`` takes and gives. Raises :class:`NotFound` or :class:`Unavailable`."""
        signature = self._signatures.get((model, version or self._newest.get(model, "")))
        if signature is not None:
            return signature
        if model in self._newest:
            raise NotFound(f"model {model!r} has no version {version!r}", param="version")
        raise Unavailable(f"model {model!r} is not ready", retry_after_s=_jittered(1.0))

    # --- inference

    async def infer(self, request: InferenceRequest, deadline_ns: int | None = None) -> InferenceResult:
        """Run ``request`` on the server with the least outstanding work.

        Where nothing was executed, one other server is tried. Raises a
        :class:`~gateway.errors.GatewayError`.
        """
        member = self._choose(request.model, request.version)
        try:
            return await self._infer_on(member, request, deadline_ns)
        except NotExecuted:
            other = self._choose(request.model, request.version, avoid=member)
            return await self._infer_on(other, request, deadline_ns)

    async def stream(self, request: InferenceRequest, deadline_ns: int | None = None) -> AsyncIterator[InferenceResult]:
        """Results of a decoupled model as they come. Never retried."""
        member = self._choose(request.model, request.version)
        member.outstanding += 1
        try:
            async for result in member.server.stream(request, _remaining(deadline_ns)):
                yield result
            member.succeeded()
        except GatewayError as error:
            self._account(member, error)
            raise
        finally:
            member.outstanding -= 1

    async def _infer_on(self, member: Member, request: InferenceRequest, deadline_ns: int | None) -> InferenceResult:
        member.outstanding += 1
        try:
            result = await member.server.infer(request, _remaining(deadline_ns))
        except GatewayError as error:
            self._account(member, error)
            raise
        finally:
            member.outstanding -= 1
        member.succeeded()
        return result

    def _account(self, member: Member, error: GatewayError) -> None:
        if isinstance(error, NotExecuted):
            member.lost()
            self._forget_unready()
        elif isinstance(error, BadUpstream | DeadlineExceeded):
            member.failed(self._eject_after, time.monotonic())

    def _choose(self, model: str, version: str, avoid: Member | None = None) -> Member:
        now = time.monotonic()
        able = [member for member in self.members if member is not avoid and _serves(member, model, version)]
        free = [member for member in able if member.can_take(now)]
        if not free:
            # A lone server is not ejected for what a model does: resting it would turn one bad model
            # into an outage of all. It is only left alone when it has as much as it may take.
            free = [member for member in able if len(self.members) == 1 and member.outstanding == 0]
        if not free:
            reason = "every server that has it is busy or resting" if able else "no server has it ready"
            raise NotExecuted(f"model {model!r} is not available: {reason}", retry_after_s=_jittered(1.0))
        least = min(member.outstanding for member in free)
        return random.choice([member for member in free if member.outstanding == least])  # noqa: S311

    # --- everything else that Triton can be asked

    async def ask(self, method: str, message: Any, model: str = "", version: str = "", timeout_s: float = 10.0) -> Any:
        """A metadata call on a server that has ``model`` ready (any server, if none is named)."""
        members = [m for m in self.members if (_serves(m, model, version) if model else m.up)]
        if not members:
            raise Unavailable(f"model {model!r} is not ready" if model else "no server is ready", retry_after_s=1.0)
        return await members[0].server.ask(method, message, timeout_s)

    async def ask_all(self, method: str, message: Any, timeout_s: float = 300.0) -> list[Any]:
        """The same call on every server that is up (model load and unload); then probe at once.

        Raises the first error; servers before it have done as asked.
        """
        members = [member for member in self.members if member.up]
        if not members:
            raise Unavailable("no server is ready", retry_after_s=1.0)
        try:
            return [await member.server.ask(method, message, timeout_s) for member in members]
        finally:
            self._signatures.clear()
            await asyncio.gather(*(self._probe(member) for member in members))

    async def statistics(self) -> list[ModelStatistics]:
        """Totals of all models on all servers that are up; a server that does not answer is left out."""
        members = [member for member in self.members if member.up]
        replies = await asyncio.gather(
            *(member.server.statistics(self._connect_timeout_s) for member in members), return_exceptions=True
        )
        return [entry for reply in replies if isinstance(reply, list) for entry in reply]

    # --- health

    async def _watch(self, member: Member) -> None:
        while True:
            await asyncio.sleep(self._health_interval_s * random.uniform(0.9, 1.1))  # noqa: S311
            await self._probe(member)

    async def _probe(self, member: Member) -> None:
        try:
            ready = await member.server.ready_models(self._connect_timeout_s)
        except NotExecuted:
            member.lost()
        except GatewayError as error:
            member.failed(self._eject_after, time.monotonic())
            if member.ejected_until > time.monotonic():
                member.lost()
            log.warning("triton.probe_failed", server=member.name, error=error.code)
        else:
            if ready and not member.ready:
                log.info("triton.ready", server=member.name, models=len(ready))
                member.ejected_until = 0.0
            if ready != member.ready:
                self._drop_signatures(ready ^ member.ready)
            member.ready = ready
            await self._learn(member, ready)
        self._forget_unready()

    async def _learn(self, member: Member, ready: frozenset[tuple[str, str]]) -> None:
        for model, version in ready:
            if (model, version) in self._signatures:
                continue
            with contextlib.suppress(GatewayError):  # asked again at the next probe
                reply = await member.server.ask(
                    "ModelConfig", pb.ModelConfigRequest(name=model, version=version), self._connect_timeout_s
                )
                self._signatures[model, version] = from_config(reply.config)

    def _drop_signatures(self, changed: Iterable[tuple[str, str]]) -> None:
        for pair in changed:
            self._signatures.pop(pair, None)

    def _forget_unready(self) -> None:
        newest: dict[str, str] = {}
        for member in self.members:
            for model, version in member.ready:
                if (model, version) in self._signatures and _version_order(version) >= _version_order(
                    newest.get(model, "")
                ):
                    newest[model] = version
        self._newest = newest


def _serves(member: Member, model: str, version: str) -> bool:
    if version:
        return (model, version) in member.ready
    return any(name == model for name, _ in member.ready)


def _version_order(version: str) -> int:
    return int(version) if version.isdigit() else -1


def _remaining(deadline_ns: int | None) -> float | None:
    if deadline_ns is None:
        return None
    remaining = (deadline_ns - time.monotonic_ns()) / 1e9
    if remaining <= 0:
        raise DeadlineExceeded("the deadline passed before the request was sent")
    return remaining


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1.0, 3.0)  # noqa: S311
