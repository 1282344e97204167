"""The pool's judgement: who is given a request, what is held against whom, and how often it tries again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from msgspec.structs import replace
from tritonclient.grpc import model_config_pb2, service_pb2

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, Unavailable
from gateway.triton.failures import DeviceFailed, ModelFailed, ModelNotReady, NotExecuted, translate_text
from gateway.triton.pool import Pool, RetryBudget
from gateway.triton.tensors import from_numpy
from gateway.types import InferenceRequest, InferenceResult

REQUEST = InferenceRequest("m", (from_numpy("x", np.zeros((1, 1), dtype=np.float32)),))
RESULT = InferenceResult("m", "1", ())


class Server:
    """Stands where a Triton stands: answers as it is told."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.calls = 0
        self.fault: Callable[[], GatewayError] | None = None
        self.models = frozenset({("m", "1")})
        self.reconnects = 0
        self.max_batch_size = 4
        self.asked: Counter[str] = Counter()
        self.replies: dict[str, Any] = {}
        self.result = RESULT
        self.unwanted = 0
        self.met = 0

    async def meet(self, timeout_s: float) -> None:
        self.met += 1

    async def infer(self, request: InferenceRequest, timeout_s: float | None, metadata: Any = ()) -> InferenceResult:
        self.calls += 1
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault()
        return self.result

    async def ready_models(self, timeout_s: float) -> frozenset[tuple[str, str]]:
        if self.fault is not None:
            raise self.fault()
        return self.models

    async def ask(self, method: str, message: Any, timeout_s: float) -> Any:
        if self.fault is not None:
            raise self.fault()
        self.asked[method] += 1
        if method in self.replies:
            return type(self.replies[method]).FromString(self.replies[method].SerializeToString())
        config = model_config_pb2.ModelConfig(name=message.name, max_batch_size=self.max_batch_size)
        return service_pb2.ModelConfigResponse(config=config)

    def reconnect(self) -> None:
        self.reconnects += 1

    async def close(self) -> None:
        pass


async def pool_of(count: int, **options: Any) -> tuple[Pool, list[Server]]:
    pool = Pool([f"127.0.0.1:{port + 1}" for port in range(count)], **options)
    servers = []
    for member in pool.members:
        await member.server.close()
        server = Server(member.name)
        member.server = server  # type: ignore[assignment]
        servers.append(server)
        await pool._probe(member)
    return pool, servers


async def test_nothing_was_executed_so_the_other_server_is_asked_once() -> None:
    pool, (first, second) = await pool_of(2)
    first.fault = lambda: NotExecuted("gone")
    for _ in range(4):
        assert await pool.infer(REQUEST) is RESULT
    assert first.calls <= 1
    second.fault = lambda: NotExecuted("gone")
    with pytest.raises(Unavailable):
        await pool.infer(REQUEST)


async def test_a_server_says_its_version_when_it_comes_and_when_it_comes_back() -> None:
    pool, (server,) = await pool_of(1)
    await pool._probe(pool.members[0])
    assert server.met == 1
    server.fault = lambda: NotExecuted("gone")
    await pool._probe(pool.members[0])
    server.fault = None
    await pool._probe(pool.members[0])
    assert server.met == 2


async def test_calls_that_nobody_waits_for_count_as_its_work() -> None:
    pool, (first, second) = await pool_of(2, max_outstanding=3)
    first.unwanted = 3
    for _ in range(4):
        assert await pool.infer(REQUEST) is RESULT
    assert (first.calls, second.calls) == (0, 4)


async def test_what_may_have_been_executed_is_not_repeated() -> None:
    pool, servers = await pool_of(2)
    for server in servers:
        server.fault = lambda: BadUpstream("broke")
    with pytest.raises(BadUpstream):
        await pool.infer(REQUEST)
    assert sum(server.calls for server in servers) == 1


async def test_a_model_that_one_server_does_not_have_leaves_its_others_there() -> None:
    pool, (first, second) = await pool_of(2)
    first.models = second.models = frozenset({("m", "1"), ("n", "1")})
    for member in pool.members:
        await pool._probe(member)
    first.fault = lambda: ModelNotReady("not ready")
    for _ in range(5):
        assert await pool.infer(REQUEST) is RESULT
    assert first.calls <= 1
    first.fault = None
    assert pool.members[0].ready <= {("n", "1"), ("m", "1")}
    assert ("n", "1") in pool.members[0].ready


async def test_failing_models_and_short_deadlines_eject_nobody_broken_connections_do() -> None:
    pool, (first, second) = await pool_of(2, eject_after=3)
    for fault in (lambda: ModelFailed("raised"), lambda: DeadlineExceeded("late")):
        first.fault = second.fault = fault
        for _ in range(20):
            with pytest.raises(GatewayError):
                await pool.infer(REQUEST)
    now = time.monotonic()
    assert all(member.ejected_until < now for member in pool.members)
    first.fault, second.fault = (lambda: BadUpstream("broke")), None
    broken = 0
    for _ in range(60):
        try:
            await pool.infer(REQUEST)
        except BadUpstream:
            broken += 1
    assert broken == 3
    assert pool.members[0].ejected_until > now


async def test_a_device_that_is_broken_rests_and_is_asked_once_for_each_request() -> None:
    pool, (first, second) = await pool_of(2, eject_after=3)
    first.fault = lambda: DeviceFailed("no memory")
    refused = 0
    for _ in range(60):
        try:
            await pool.infer(REQUEST)
        except Unavailable:
            refused += 1
    assert (refused, first.calls, second.calls) == (3, 3, 57)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", DeviceFailed),
        ("onnx runtime error 6: ... Failed to allocate memory for requested buffer of size 1", DeviceFailed),
        ("CUDA error: an illegal memory access was encountered", DeviceFailed),
        ("CUDA failure 700: an illegal memory access", DeviceFailed),
        ("std::bad_alloc", DeviceFailed),
        ("CUDNN_STATUS_EXECUTION_FAILED", DeviceFailed),
        ("device-side assert triggered", DeviceFailed),
        ("Exceeds maximum queue size", Unavailable),
        ("Request timeout expired", Unavailable),
        ("the model raised: index out of range", ModelFailed),
    ],
)
def test_what_triton_says_is_told_apart(text: str, kind: type[GatewayError]) -> None:
    error = translate_text(text, grpc.StatusCode.INTERNAL)
    assert type(error) is kind
    assert text not in error.message


async def test_no_more_than_half_of_the_servers_rest_at_once() -> None:
    pool, servers = await pool_of(4, eject_after=1)
    for server in servers:
        server.fault = lambda: BadUpstream("broke")
    for _ in range(40):
        with pytest.raises(BadUpstream):
            await pool.infer(REQUEST)
    now = time.monotonic()
    assert sum(member.ejected_until > now for member in pool.members) == 2


async def test_a_server_that_does_not_answer_probes_is_asked_last_and_then_lost() -> None:
    pool, (first, second) = await pool_of(2, eject_after=3)
    first.fault = lambda: DeadlineExceeded("silent")
    await pool._probe(pool.members[0])
    calls = first.calls
    for _ in range(10):
        await pool.infer(REQUEST)
    assert first.calls == calls
    await pool._probe(pool.members[0])
    assert pool.members[0].up
    await pool._probe(pool.members[0])
    assert not pool.members[0].up
    assert first.reconnects == 1
    first.fault = None
    await pool._probe(pool.members[0])
    assert pool.members[0].up
    del second


async def test_a_server_that_is_not_reached_gets_a_new_connection_now_and_then() -> None:
    """A channel remembers for long what a name once was, or that it was nothing."""
    pool, (only,) = await pool_of(1, eject_after=3)
    only.fault = lambda: NotExecuted("no such name")
    for probes, reconnects in ((2, 0), (1, 1), (2, 1), (1, 2)):
        for _ in range(probes):
            await pool._probe(pool.members[0])
        assert only.reconnects == reconnects
    assert not pool.members[0].up


async def test_a_lone_server_that_is_slow_to_answer_probes_is_still_asked() -> None:
    pool, (only,) = await pool_of(1)
    only.fault = lambda: DeadlineExceeded("slow")
    await pool._probe(pool.members[0])
    only.fault = None
    assert await pool.infer(REQUEST) is RESULT


async def test_signatures_stay_in_use_while_they_are_asked_for_again() -> None:
    pool, (only,) = await pool_of(1)
    seen: list[str] = []
    ask = only.ask

    async def slowly(method: str, message: Any, timeout_s: float) -> Any:
        seen.append(pool.signature("m").model)  # what a request finds meanwhile
        return await ask(method, message, timeout_s)

    only.ask = slowly  # type: ignore[method-assign]
    await pool.ask_all("RepositoryModelLoad", type("Message", (), {"name": "m"})())
    assert seen == ["m", "m"]


async def test_retries_are_a_tenth_of_requests() -> None:
    budget = RetryBudget(0.1, reserve=10)
    assert sum(budget.withdraw() for _ in range(100)) == 10
    taken = 0
    for _ in range(1000):
        budget.deposit()
        taken += budget.withdraw()
    assert 95 <= taken <= 100
    assert not any(RetryBudget(0.0).withdraw() for _ in range(3))


async def test_ejection_and_retries_can_be_switched_off() -> None:
    pool, (first, second) = await pool_of(2, eject=False, eject_after=1, retry_ratio=0.0)
    first.fault = second.fault = lambda: BadUpstream("broke")
    for _ in range(20):
        with pytest.raises(BadUpstream):
            await pool.infer(REQUEST)
    assert all(member.ejected_until == 0 for member in pool.members)
    first.fault = second.fault = lambda: NotExecuted("gone")
    calls = first.calls + second.calls
    with pytest.raises(Unavailable):
        await pool.infer(REQUEST)
    assert first.calls + second.calls == calls + 1


# --- what changes behind the pool's back


async def test_every_configuration_is_asked_for_again_within_ten_probes() -> None:
    pool, (only,) = await pool_of(1)
    only.models = frozenset((f"m{number}", "1") for number in range(25))
    await pool._probe(pool.members[0])
    known = {name: pool.signature(name) for name, _ in only.models}
    only.asked.clear()
    for _ in range(9):
        before = only.asked["ModelConfig"]
        await pool._probe(pool.members[0])
        assert only.asked["ModelConfig"] - before <= 3
    await pool._probe(pool.members[0])
    assert only.asked["ModelConfig"] == 25
    assert all(pool.signature(name) is signature for name, signature in known.items())  # equal: as it was
    only.max_batch_size = 2
    for _ in range(10):
        await pool._probe(pool.members[0])
    assert {pool.signature(name).max_batch_size for name in known} == {2}


@pytest.mark.parametrize("doubt", ["refused", "another answer"])
async def test_a_model_that_does_not_keep_to_its_signature_is_asked_for_it_at_the_next_probe(doubt: str) -> None:
    pool, (only,) = await pool_of(1)
    only.models = frozenset((f"m{number}", "1") for number in range(40)) | {("m", "1")}
    await pool._probe(pool.members[0])
    only.max_batch_size = 2
    if doubt == "refused":
        only.fault = lambda: Invalid("not with me")
        with pytest.raises(Invalid):
            await pool.infer(REQUEST)
        only.fault = None
    else:
        only.result = replace(RESULT, outputs=(from_numpy("y", np.zeros((1, 1), dtype=np.float32)),))
        with pytest.raises(BadUpstream):
            await pool.infer(REQUEST)
    assert pool.members[0].failures == 0  # nothing is held against the server
    await pool._probe(pool.members[0])
    assert pool.signature("m").max_batch_size == 2


async def test_an_answer_that_is_damaged_is_held_against_its_server() -> None:
    pool, (first, second) = await pool_of(2, eject_after=3)
    first.result = replace(RESULT, model="another")
    damaged = 0
    for _ in range(60):
        try:
            await pool.infer(REQUEST)
        except BadUpstream:
            damaged += 1
    assert (damaged, first.calls, second.calls) == (3, 3, 57)


# --- questions to all servers


async def test_statistics_are_sums_and_the_index_is_that_of_all_servers() -> None:
    pool, (first, second) = await pool_of(2)
    for server, count in ((first, 3), (second, 40)):
        batch = service_pb2.InferBatchStatistics(batch_size=count % 2 + 1)
        batch.compute_infer.count, batch.compute_infer.ns = count, count * 10
        entry = service_pb2.ModelStatistics(
            name="m", version="1", inference_count=count, last_inference=count, batch_stats=[batch, _batch(8, count)]
        )
        entry.inference_stats.queue.ns = entry.inference_stats.success.count = count
        server.replies["ModelStatistics"] = service_pb2.ModelStatisticsResponse(model_stats=[entry])
        index = service_pb2.RepositoryIndexResponse()
        index.models.add(name="m", version="1", state="READY")
        index.models.add(name="n", version="1", state="READY" if server is second else "UNAVAILABLE")
        index.models.add(name=f"only{count}", version="1", state="LOADING")
        server.replies["RepositoryIndex"] = index
    (total,) = (await pool.ask("ModelStatistics", service_pb2.ModelStatisticsRequest())).model_stats
    assert (total.name, total.version, total.inference_count, total.last_inference) == ("m", "1", 43, 40)
    assert (total.inference_stats.queue.ns, total.inference_stats.success.count) == (43, 43)
    assert {batch.batch_size: batch.compute_infer.ns for batch in total.batch_stats} == {2: 30, 1: 400, 8: 43}
    reply = await pool.ask("RepositoryIndex", service_pb2.RepositoryIndexRequest())
    assert {entry.name: entry.state for entry in reply.models} == {
        "m": "READY", "n": "READY", "only3": "LOADING", "only40": "LOADING",
    }  # fmt: skip
    second.fault = lambda: BadUpstream("broke")
    (alone,) = (await pool.ask("ModelStatistics", service_pb2.ModelStatisticsRequest(), "m")).model_stats
    assert alone.inference_count == 3
    first.fault = second.fault
    with pytest.raises(BadUpstream):
        await pool.ask("ModelStatistics", service_pb2.ModelStatisticsRequest())


def _batch(size: int, ns: int) -> Any:
    made = service_pb2.InferBatchStatistics(batch_size=size)
    made.compute_infer.ns = ns
    return made
