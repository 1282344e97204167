"""From the requests of one Triton batch to as few runs of the model as possible, and back to one answer each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from embedded.backends.common.config import ModelSpec

Array = Any
"""What an engine computes with: a ``numpy.ndarray`` or a ``torch.Tensor``; both have shape, dtype and slices."""
Feeds = dict[str, Array]


class InvalidInputError(ValueError):
    """A request's tensor cannot be what the model takes; the message goes to the client."""


class Engine(Protocol):
    """A loaded model."""

    def read(self, tensor: Any) -> Array:
        """Triton's input tensor as an array, without a copy where possible. Raises :class:`InvalidInputError`."""

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Arrays of one dtype, joined along the batch dimension."""

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> list[Array]:
        """One run: the named outputs, in that order. Raises what the library raises."""

    def write(self, name: str, array: Array) -> Any:
        """An output array as Triton's tensor."""


class BatchExecutor:
    """Runs Triton's requests on an engine.

    Requests whose tensors agree in name, dtype and shape beyond the batch dimension are one run. When a run of
    several fails, each is run alone, so that only the bad one is answered with an error.
    """

    def __init__(self, spec: ModelSpec, engine: Engine) -> None:
        self._spec = spec
        self._engine = engine
        self._input_names = [tensor.name for tensor in spec.inputs]
        self._output_order = [tensor.name for tensor in spec.outputs]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order.

        Requests are not asked whether they are cancelled: that asks the server's process and costs more (about 0.1 ms)
        than all else here; what is cancelled while it waits, Triton itself drops before it comes here.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[tuple[int, Feeds]]] = {}
        for index, request in enumerate(requests):
            try:
                feeds = self._read(request)
            except InvalidInputError as error:
                responses[index] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            groups.setdefault(self._group_key(index, feeds), []).append((index, feeds))
        for members in groups.values():
            self._run_group(members, requests, responses)
        return responses

    def _read(self, request: Any) -> Feeds:
        feeds = {}
        for tensor in request.inputs():
            feeds[tensor.name()] = self._engine.read(tensor)
        return feeds

    def _group_key(self, index: int, feeds: Feeds) -> tuple[Any, ...]:
        if not self._spec.batched:
            return (index,)
        return tuple(
            (name, feeds[name].dtype, tuple(feeds[name].shape[1:])) for name in self._input_names if name in feeds
        )

    def _run_group(self, members: Sequence[tuple[int, Feeds]], requests: Sequence[Any], responses: list[Any]) -> None:
        wanted = [requests[index].requested_output_names() for index, _ in members]
        asked = set().union(*wanted)
        names = [name for name in self._output_order if name in asked]
        sizes = [self._rows(feeds) for _, feeds in members]
        try:
            arrays = dict(zip(names, self._engine.run(self._joined(members), names), strict=True))
            if self._spec.batched:
                self._check_batch(arrays, sum(sizes))
        except Exception as error:  # noqa: BLE001  # whatever the library raises is the answer to these requests
            if len(members) > 1:
                for member in members:
                    self._run_group([member], requests, responses)
                return
            responses[members[0][0]] = _failure(f"{self._spec.name}: {_reason(error)}")
            return
        row = 0
        for (index, _), size, outputs in zip(members, sizes, wanted, strict=True):
            whole = len(members) == 1
            responses[index] = pb_utils.InferenceResponse(
                [
                    self._engine.write(name, arrays[name] if whole else arrays[name][row : row + size])
                    for name in names
                    if name in outputs
                ]
            )
            row += size

    def _joined(self, members: Sequence[tuple[int, Feeds]]) -> Feeds:
        first = members[0][1]
        if len(members) == 1:
            return first
        return {name: self._engine.concatenate([feeds[name] for _, feeds in members]) for name in first}

    def _rows(self, feeds: Feeds) -> int:
        if not self._spec.batched:
            return 1
        return max((int(array.shape[0]) for array in feeds.values()), default=1)

    @staticmethod
    def _check_batch(arrays: Mapping[str, Array], rows: int) -> None:
        for name, array in arrays.items():
            shape = tuple(array.shape)
            if not shape or shape[0] != rows:
                raise ValueError(f"output {name!r} has shape {list(shape)} for a batch of {rows}")


def _failure(message: str, code: Any = None) -> Any:
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _reason(error: Exception) -> str:
    """The line that says what was wrong: the first, or with an embedded traceback (TorchScript) the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]
