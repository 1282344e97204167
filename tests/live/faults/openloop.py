"""Load that does not wait for answers, from several tenants, and what became of it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from benchmarks.grpc_client import GrpcPool
from benchmarks.http_client import EXPIRED, Exchange, HttpPool
from benchmarks.pacing import poisson
from benchmarks.timer import PreciseTimer
from benchmarks.workloads import Payload
from tests.live.faults.ledger import eventually

MODEL, TASK_MODEL = "matmul", "opinion"
NUMBERS = 100_000


@dataclass
class Answers:
    """Of one tenant: when each was sent and answered (seconds), and its status; 0 is none or a wrong one."""

    sent: list[float] = field(default_factory=list)
    elapsed: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def add(self, sent: float, elapsed: float, status: int) -> None:
        self.sent.append(sent)
        self.elapsed.append(elapsed)
        self.statuses.append(status)

    def of(self, *statuses: int) -> np.ndarray:
        """Seconds that answers with one of these took."""
        return np.array([e for e, s in zip(self.elapsed, self.statuses, strict=True) if s in statuses])

    def goodput(self, deadline_s: float, begin: float, end: float) -> float:
        """Right answers within the deadline a second, to requests sent between ``begin`` and ``end``."""
        good = sum(
            status == 200 and elapsed <= deadline_s and begin <= sent < end
            for sent, elapsed, status in zip(self.sent, self.elapsed, self.statuses, strict=True)
        )
        return good / (end - begin)

    def __str__(self) -> str:
        counts = {status: self.statuses.count(status) for status in sorted(set(self.statuses))}
        quantiles = {
            status: [round(float(q) * 1000, 1) for q in np.quantile(self.of(status), (0.5, 0.9, 0.99))]
            for status in counts
        }
        return f"{counts}, ms at p50, p90, p99: {quantiles}"


class Question(Protocol):
    """What is asked. Every request carries a number, and a right answer brings it back."""

    def ask(self, number: int, deadline_s: float) -> Payload:
        """The request number ``number``, of 1 to ``NUMBERS``."""
        ...

    def is_right(self, body: bytes, number: int) -> bool:
        """Whether ``body`` is the answer to it."""
        ...


class Inference:
    """Of ``matmul`` over the Open Inference Protocol's REST."""

    def ask(self, number: int, deadline_s: float) -> Payload:
        """JSON, with the deadline among the parameters."""
        tensor = {"name": "INPUT", "shape": [1, 4], "datatype": "FP32", "data": [float(number), 0.0, 0.0, 0.0]}
        body = json.dumps({"inputs": [tensor], "parameters": {"timeout": int(deadline_s * 1e6)}}).encode()
        return Payload(f"/v2/models/{MODEL}/infer", body, "application/json")

    def is_right(self, body: bytes, number: int) -> bool:
        """The output is the number."""
        return bool(json.loads(body)["outputs"][0]["data"] == [float(number)])


class GrpcInference:
    """The same over gRPC."""

    def ask(self, number: int, deadline_s: float) -> Payload:
        """A message with the deadline among its parameters."""
        message = pb.ModelInferRequest(model_name=MODEL)
        message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 4])
        message.raw_input_contents.append(np.array([number, 0, 0, 0], dtype=np.float32).tobytes())
        message.parameters["timeout"].int64_param = int(deadline_s * 1e6)
        return Payload("", b"", message=message.SerializeToString())

    def is_right(self, body: bytes, number: int) -> bool:
        """The output is the number."""
        return bool(np.frombuffer(pb.ModelInferResponse.FromString(body).raw_output_contents[0], np.float32) == number)


class Opinion:
    """A task: the classification of a text of one word, whose first score tells which. Its deadline is its tier's."""

    def ask(self, number: int, deadline_s: float) -> Payload:
        """One of 99 words."""
        text = f"w{number % 99 + 1}"
        return Payload(f"/hf/models/{TASK_MODEL}", json.dumps({"inputs": text}).encode(), "application/json")

    def is_right(self, body: bytes, number: int) -> bool:
        """The score of ``yes`` is that of the word's token."""
        score = next(label["score"] for label in json.loads(body)[0] if label["label"] == "yes")
        return math.isclose(score, 1 / (1 + math.exp(-(number % 99 + 1) / 50)), abs_tol=1e-4)


class Load:
    """Asks one gateway. Over gRPC the key is the pool's."""

    def __init__(self, pool: HttpPool | GrpcPool, question: Question, deadline_s: float) -> None:
        self._pool = pool
        self._question = question
        self._deadline_s = deadline_s
        self._number = 0
        self._outstanding = 0

    async def open(self, rates: dict[str, float], duration_s: float, seed: int = 1) -> dict[str, Answers]:
        """Requests of each key at its own rate, whatever becomes of them."""
        answers = {key: Answers() for key in rates}
        arrivals = sorted(
            (int(at), key)
            for index, (key, rate) in enumerate(rates.items())
            for at in poisson(rate, duration_s, seed + index)
        )
        begin = time.monotonic_ns()
        with PreciseTimer() as timer:
            for at, key in arrivals:
                if time.monotonic_ns() < begin + at:
                    await timer.until(begin + at)
                self._send(key, answers[key], begin)
        await eventually(lambda: not self._outstanding)
        return answers

    async def closed(self, keys: Sequence[str], clients: int, duration_s: float) -> dict[str, Answers]:
        """``clients`` of each key, each asking again when it is answered."""
        answers = {key: Answers() for key in keys}
        begin = time.monotonic_ns()

        async def one(key: str) -> None:
            while time.monotonic_ns() < begin + duration_s * 1e9:
                done = asyncio.get_running_loop().create_future()
                self._send(key, answers[key], begin, done)
                await done

        await asyncio.gather(*(one(key) for key in keys for _ in range(clients)))
        return answers

    def _send(self, key: str, answers: Answers, begin: int, waiter: asyncio.Future[None] | None = None) -> None:
        self._number = number = self._number % NUMBERS + 1
        sent = time.monotonic_ns()

        def done(exchange: Exchange) -> None:
            status = exchange.status
            if status == 200 and not self._question.is_right(exchange.body, number):
                status = 0
            if status == EXPIRED and isinstance(self._pool, GrpcPool):  # its name for the gateway's own word
                status = 504
            answers.add((sent - begin) / 1e9, (exchange.done_ns - sent) / 1e9, max(0, status))
            self._outstanding -= 1
            if waiter is not None:
                waiter.set_result(None)

        self._outstanding += 1
        self._pool.submit(self._pool.encode(self._question.ask(number, self._deadline_s), key), done)
