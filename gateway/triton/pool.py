"""Several Triton servers as one: per-model readiness, least-outstanding choice, ejection and slow
return of failing servers, one retry on another host where nothing was executed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import structlog
from tritonclient.grpc import service_pb2 as pb

from gateway.background import Background
from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, NotFound, Unavailable
from gateway.triton.answers import UnlikeSignature, check_answer, check_part
from gateway.triton.client import TritonServer
from gateway.triton.failures import DeviceFailed, ModelFailed, ModelNotReady, NotExecuted
from gateway.triton.merging import MERGE
from gateway.triton.signature import Signature, from_config
from gateway.triton.statistics import ModelStatistics
from gateway.types import InferenceRequest, InferenceResult

log = structlog.get_logger(__name__)

_MAX_EJECTION_S = 30.0
_ROUND = 10
"""Probes in which every model's configuration is asked for again: somebody else may have loaded it anew."""


class Member:
    """A server in the pool and what is known of it."""

    def __init__(self, server: TritonServer, max_outstanding: int) -> None:
        self.server = server
        self.waited_for = 0
        """Requests in flight to it that somebody waits for."""
        self.failures = 0
        """Consecutive ones, of inferences."""
        self.silent_probes = 0
        """Consecutive probes without an answer: from the first on, others are preferred."""
        self.failed_probes = 0
        """Those, and the ones that did not reach it."""
        self.ejections = 0
        self.ejected_until = 0.0
        self.answered_at = 0.0
        """When it last answered an inference (monotonic clock)."""
        self.ready: frozenset[tuple[str, str]] = frozenset()
        self.doubted: set[str] = set()
        """Models that did not take or give what their signatures say: the next probe asks for those again."""
        self.probes = 0
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

    @property
    def outstanding(self) -> int:
        """All requests in flight to it."""
        return self.waited_for + self.server.unwanted

    def rank(self, now: float) -> int | None:
        """How willingly it is given a request: 0 first; None: not at all."""
        if self.outstanding >= self._max_outstanding:
            return None
        if now < self.ejected_until:
            return None if self.outstanding else 3  # if nobody else can: one request, to see how it is
        if self.silent_probes:
            return 2
        return 1 if self.outstanding >= self._allowance else 0

    def succeeded(self) -> None:
        """A call was answered: forget failures, and let a returning server take twice as much."""
        self.failures = 0
        self.ejections = 0
        self.answered_at = time.monotonic()
        self._allowance = min(self._max_outstanding, self._allowance * 2)

    def eject(self, now: float) -> None:
        """Let the server rest, longer each time; it returns slowly."""
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

    def lost_model(self, model: str) -> None:
        """It said that ``model`` is not ready: so it is, until a probe finds it again."""
        self.ready = frozenset(pair for pair in self.ready if pair[0] != model)

    def due(self, ready: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """Which of the ``ready`` models this probe asks for again: all of them within a round, and the doubted ones."""
        self.probes += 1
        doubted, self.doubted = self.doubted, set()
        turn = sorted(ready)[self.probes % _ROUND :: _ROUND]
        return frozenset(turn).union(pair for pair in ready if pair[0] in doubted)


class RetryBudget:
    """Retries may be ``ratio`` of requests, and ``reserve`` of them at once: a failing fleet is not stormed.

    Without a ratio there are none.
    """

    def __init__(self, ratio: float, reserve: int = 10) -> None:
        self._ratio = ratio
        self._reserve = float(reserve) if ratio > 0 else 0.0
        self._left = self._reserve

    def deposit(self) -> None:
        """A request arrived."""
        self._left = min(self._reserve, self._left + self._ratio)

    def withdraw(self) -> bool:
        """Take one retry, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Pool:
    """The Triton servers behind this gateway. ``start`` before use; ``stop`` once."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        connect_timeout_s: float = 2.0,
        health_interval_s: float = 1.0,
        eject: bool = True,
        eject_after: int = 3,
        max_outstanding: int = 256,
        retry_ratio: float = 0.1,
        cancel_since: str = "2.58",
    ) -> None:
        """``eject``: let a server rest that fails ``eject_after`` times in a row; one that cannot be reached, or does
        not answer as many probes, serves nothing in either case. ``retry_ratio``: see :class:`RetryBudget`.
        ``cancel_since``: the version from which a Triton is told of cancellations.
        """
        self.members = [
            Member(TritonServer(target, connect_timeout_s, cancel_since), max_outstanding) for target in targets
        ]
        self._connect_timeout_s = connect_timeout_s
        self._health_interval_s = health_interval_s
        self._eject, self._eject_after = eject, eject_after
        self._budget = RetryBudget(retry_ratio)
        self._signatures: dict[tuple[str, str], Signature] = {}
        self._newest: dict[str, str] = {}
        self._servers: Counter[str] = Counter()
        self._background = Background()

    async def start(self) -> None:
        """Probe every server once, then keep probing."""
        await asyncio.gather(*(self._probe(member) for member in self.members))
        for member in self.members:
            self._background.every(
                self._health_interval_s, partial(self._probe, member), f"probe of {member.name}", jitter=0.1
            )

    async def stop(self) -> None:
        """Stop probing and close the channels."""
        await self._background.stop()
        await asyncio.gather(*(member.server.close() for member in self.members))

    # --- what is served

    def ready_models(self) -> frozenset[str]:
        """Names that at least one server can infer now."""
        return frozenset(self._newest)

    def servers(self, model: str) -> int:
        """How many can infer ``model`` now."""
        return self._servers[model]

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

        Where nothing was executed, one other server is tried, within the retry budget; for an idempotent
        request also where the connection broke and it may have been executed. Raises a
        :class:`~gateway.errors.GatewayError`.
        """
        self._budget.deposit()
        member = self._choose(request.model, request.version)
        try:
            return await self._infer_on(member, request, deadline_ns)
        except NotExecuted:
            other = self._choose(request.model, request.version, avoid=member)
            if not self._budget.withdraw():
                raise
            return await self._infer_on(other, request, deadline_ns)
        except BadUpstream as error:
            # It may have been executed: it is tried again for those only who said that this does no harm.
            if not request.idempotent or isinstance(error, ModelFailed):
                raise
            try:
                other = self._choose(request.model, request.version, avoid=member)
            except NotExecuted:
                raise error from None
            if not self._budget.withdraw():
                raise
            return await self._infer_on(other, request, deadline_ns)

    async def stream(self, request: InferenceRequest, deadline_ns: int | None = None) -> AsyncIterator[InferenceResult]:
        """Results of a decoupled model as they come. Never retried."""
        member = self._choose(request.model, request.version)
        sent_at = time.monotonic()
        member.waited_for += 1
        try:
            async for result in member.server.stream(request, _remaining(deadline_ns)):
                check_part(result, request, self._signatures.get((request.model, result.version)))
                yield result
            member.succeeded()
        except GatewayError as error:
            self._account(member, error, request.model, sent_at)
            raise
        finally:
            member.waited_for -= 1

    async def _infer_on(self, member: Member, request: InferenceRequest, deadline_ns: int | None) -> InferenceResult:
        sent_at = time.monotonic()
        member.waited_for += 1
        try:
            result = await member.server.infer(request, _remaining(deadline_ns), request.trace)
            check_answer(result, request, self._signatures.get((request.model, result.version)))
        except GatewayError as error:
            self._account(member, error, request.model, sent_at)
            raise
        finally:
            member.waited_for -= 1
        member.succeeded()
        return result

    def _account(self, member: Member, error: GatewayError, model: str, sent_at: float) -> None:
        """Hold against a server what is its fault; what a model or a caller's short deadline does is not."""
        now = time.monotonic()
        if isinstance(error, ModelNotReady):
            member.lost_model(model)
            self._forget_unready()
        elif isinstance(error, NotExecuted):
            member.lost()
            self._forget_unready()
        elif isinstance(error, Invalid | UnlikeSignature):
            member.doubted.add(model)
        elif isinstance(error, DeviceFailed) or (isinstance(error, BadUpstream) and not isinstance(error, ModelFailed)):
            self._failed(member, now)
        elif isinstance(error, DeadlineExceeded):
            silent_s = now - max(sent_at, member.answered_at)  # it answered nobody in that time
            if member.answered_at < sent_at and silent_s >= self._connect_timeout_s:
                self._failed(member, now)

    def _failed(self, member: Member, now: float) -> None:
        member.failures += 1
        resting = sum(now < other.ejected_until for other in self.members if other is not member)
        # Half of the servers at most: what all of them suffer from is no reason to do without all.
        if self._eject and member.failures >= self._eject_after and resting + 1 <= len(self.members) // 2:
            member.eject(now)
            log.warning("triton.ejected", server=member.name, seconds=round(member.ejected_until - now, 1))

    def _choose(self, model: str, version: str, avoid: Member | None = None) -> Member:
        now = time.monotonic()
        best: list[Member] = []
        lowest = (9, 0)
        able = False
        for member in self.members:
            if member is avoid or not _serves(member, model, version):
                continue
            able = True
            rank = member.rank(now)
            if rank is None:
                continue
            standing = (rank, member.outstanding)
            if standing < lowest:
                best, lowest = [member], standing
            elif standing == lowest:
                best.append(member)
        if not best:
            reason = "every server that has it is busy or resting" if able else "no server has it ready"
            raise NotExecuted(f"model {model!r} is not available: {reason}", retry_after_s=_jittered(1.0))
        return best[0] if len(best) == 1 else random.choice(best)  # noqa: S311

    # --- everything else that Triton can be asked

    async def ask(self, method: str, message: Any, model: str = "", version: str = "", timeout_s: float = 10.0) -> Any:
        """A metadata call on a server that has ``model`` ready (any server, if none is named).

        What differs from server to server, statistics and the index, is asked of all of them and put together; one that
        does not answer is left out. Raises a :class:`~gateway.errors.GatewayError`.
        """
        members = [m for m in self.members if (_serves(m, model, version) if model else m.up)]
        if not members:
            raise Unavailable(f"model {model!r} is not ready" if model else "no server is ready", retry_after_s=1.0)
        merge = MERGE.get(method)
        if merge is not None and len(members) > 1:
            calls = (member.server.ask(method, message, timeout_s) for member in members)
            replies = await asyncio.gather(*calls, return_exceptions=True)
            answered = [reply for reply in replies if not isinstance(reply, BaseException)]
            if not answered:
                raise next(reply for reply in replies if isinstance(reply, BaseException))
            return merge(answered)
        members.sort(key=lambda member: member.silent_probes)  # stable
        for member in members[:-1]:
            with contextlib.suppress(Unavailable, BadUpstream, DeadlineExceeded):
                return await member.server.ask(method, message, timeout_s)
        return await members[-1].server.ask(method, message, timeout_s)

    async def ask_all(self, method: str, message: Any, timeout_s: float = 300.0) -> list[Any]:
        """The same call on every server that is up (model load and unload); then probe at once.

        Every server is asked; raises the first error.
        """
        members = [member for member in self.members if member.up]
        if not members:
            raise Unavailable("no server is ready", retry_after_s=1.0)
        replies = await asyncio.gather(
            *(member.server.ask(method, message, timeout_s) for member in members), return_exceptions=True
        )
        await asyncio.gather(*(self._probe(member, relearn=True) for member in members))
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    async def statistics(self) -> list[ModelStatistics]:
        """Totals of all models on all servers that are up; a server that does not answer is left out."""
        members = [member for member in self.members if member.up]
        replies = await asyncio.gather(
            *(member.server.statistics(self._connect_timeout_s) for member in members), return_exceptions=True
        )
        return [entry for reply in replies if isinstance(reply, list) for entry in reply]

    # --- health

    async def _probe(self, member: Member, *, relearn: bool = False) -> None:
        try:
            ready = await member.server.ready_models(self._connect_timeout_s)
        except NotExecuted:
            member.silent_probes = 0
            member.lost()
            self._probe_failed(member)
        except GatewayError as error:
            member.silent_probes += 1
            log.warning("triton.probe_failed", server=member.name, error=error.code)
            if member.silent_probes % self._eject_after == 0:
                member.lost()
            self._probe_failed(member)
        else:
            member.silent_probes = member.failed_probes = 0
            await self._learn(member, ready, ready if relearn else (ready - member.ready) | member.due(ready))
            if ready and not member.ready:
                with contextlib.suppress(GatewayError):  # it is told of nothing then
                    await member.server.meet(self._connect_timeout_s)
                log.info("triton.ready", server=member.name, models=len(ready))
                member.ejected_until = 0.0
            member.ready = frozenset(pair for pair in ready if pair in self._signatures)
        self._forget_unready()

    def _probe_failed(self, member: Member) -> None:
        """Now and then begin anew: a connection may be dead, and a name's old address may be all that it knows."""
        member.failed_probes += 1
        if member.failed_probes % self._eject_after == 0:
            member.server.reconnect()

    async def _learn(self, member: Member, ready: frozenset[tuple[str, str]], new: frozenset[tuple[str, str]]) -> None:
        """Ask for the signatures of ``new`` models; what is known of others stays in use meanwhile."""
        for model, version in ready:
            if (model, version) in self._signatures and (model, version) not in new:
                continue
            with contextlib.suppress(GatewayError):  # asked again at the next probe
                reply = await member.server.ask(
                    "ModelConfig", pb.ModelConfigRequest(name=model, version=version), self._connect_timeout_s
                )
                learned = from_config(reply.config)
                if learned != self._signatures.get((model, version)):  # an equal one goes on with what it has found
                    self._signatures[model, version] = learned

    def _forget_unready(self) -> None:
        served = {pair for member in self.members for pair in member.ready}
        newest: dict[str, str] = {}
        for model, version in served:
            if _version_order(version) >= _version_order(newest.get(model, "")):
                newest[model] = version
        self._newest = newest
        self._servers = Counter(name for member in self.members for name in {name for name, _ in member.ready})
        # A server that is lost for a moment comes back with the same models: their signatures are kept.
        for pair in [pair for pair in self._signatures if pair not in served and pair[0] in newest]:
            del self._signatures[pair]


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
