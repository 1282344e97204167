"""A short way to say in a test what goes to a model and what comes back."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Arrays = dict[str, NDArray[Any]]
ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Statistics:
    """Differences of a model's counters; times in ns."""

    inferences: int
    executions: int
    batches: dict[int, int]
    infer_ns: int
    cache_hits: int


class ModelClient:
    """One model of one server over gRPC."""

    def __init__(self, client: grpcclient.InferenceServerClient, name: str) -> None:
        self.name = name
        self._client = client

    def infer(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Arrays:
        """Answer one request."""
        return _arrays(self._client.infer(self.name, _tensors(inputs), outputs=_named(outputs)))

    def infer_many(self, requests: Sequence[Mapping[str, Any]]) -> list[Arrays | InferenceServerException]:
        """Send all at once; answers in the order of the requests."""
        answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
        for index, inputs in enumerate(requests):
            self._client.async_infer(
                self.name,
                _tensors(inputs),
                callback=lambda result, error, index=index: answers.put((index, result, error)),
            )
        received = [answers.get(timeout=ANSWER_TIMEOUT_S) for _ in requests]
        return [error or _arrays(result) for _, result, error in sorted(received, key=lambda answer: answer[0])]

    def statistics(self) -> Statistics:
        """The counters as they stand."""
        entry = self._client.get_inference_statistics(self.name).model_stats[0]
        return Statistics(
            inferences=entry.inference_count,
            executions=entry.execution_count,
            batches={int(batch.batch_size): int(batch.compute_infer.count) for batch in entry.batch_stats},
            infer_ns=entry.inference_stats.compute_infer.ns,
            cache_hits=entry.inference_stats.cache_hit.count,
        )

    def since(self, before: Statistics, inferences: int) -> Statistics:
        """What has been counted since ``before``; Triton counts after it has answered, so wait for ``inferences``."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while (now := self.statistics()).inferences - before.inferences < inferences:
            assert time.monotonic() < deadline, f"{now} has not {inferences} more than {before}"
            time.sleep(0.02)
        return Statistics(
            inferences=now.inferences - before.inferences,
            executions=now.executions - before.executions,
            batches={
                size: count - before.batches.get(size, 0)
                for size, count in now.batches.items()
                if count != before.batches.get(size, 0)
            },
            infer_ns=now.infer_ns - before.infer_ns,
            cache_hits=now.cache_hits - before.cache_hits,
        )


def _tensors(inputs: Mapping[str, Any]) -> list[grpcclient.InferInput]:
    tensors = []
    for name, values in inputs.items():
        array = np.asarray(values)
        tensor = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def _named(outputs: Sequence[str] | None) -> list[grpcclient.InferRequestedOutput] | None:
    return None if outputs is None else [grpcclient.InferRequestedOutput(name) for name in outputs]


def _arrays(result: Any) -> Arrays:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
