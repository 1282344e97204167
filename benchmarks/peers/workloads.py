"""The suite's workloads in what a peer speaks: the same inputs, the same checks of the answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from typing_extensions import override

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.catalogue import PEERS
from benchmarks.workloads import WORKLOADS, Payload, Workload, WrongAnswer
from benchmarks.workloads.tensors import infer_body, infer_message

TASKS = ("sentiment", "embeddings", "imagenet")
BOUNDARY = "tidegate-bench-7f3a9c51"


class _Adapted(Workload):
    """Another workload's inputs and judgement, in other clothes."""

    def __init__(self, source: Workload) -> None:
        super().__init__(source.seed)
        self.source = source
        self.name, self.model = source.name, source.model

    @property
    @override
    def goldens(self) -> int:
        return self.source.goldens

    def dress(self, payload: Payload) -> Payload:
        """The payload as the peer wants it."""
        raise NotImplementedError

    def undress(self, payload: Payload, body: bytes) -> bytes:
        """The peer's answer as the source's dialect has it. Raises :class:`WrongAnswer`."""
        raise NotImplementedError

    @override
    def golden(self, number: int) -> Payload:
        return self.dress(self.source.golden(number))

    @override
    def unique(self, index: int) -> Payload:
        return self.dress(self.source.unique(index))

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        return self.source.parse(payload, self.undress(payload, body))

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return self.source.matches(reference, answer)


class Predict(_Adapted):
    """The task's own JSON, or a picture, to ``/predict``.

    ``form``: a picture is uploaded as the file of a form. ``lists``: a list of one goes in, and comes back.
    """

    def __init__(self, source: Workload, *, form: bool = False, lists: bool = False) -> None:
        super().__init__(source)
        self._form = form
        self._lists = lists

    @override
    def dress(self, payload: Payload) -> Payload:
        if payload.content_type != "application/json":
            return self._picture(payload)
        if not self._lists:
            return replaced(payload, path="/predict")
        return replaced(payload, path="/predict", body=msgspec.json.encode({"inputs": [_value(payload)]}))

    def _picture(self, payload: Payload) -> Payload:
        if not self._form:
            return replaced(payload, path="/predict")
        path, field = ("/pictures", "inputs") if self._lists else ("/predict", "request")
        return replaced(
            payload, path=path, body=_file(field, payload), content_type=f"multipart/form-data; boundary={BOUNDARY}"
        )

    @override
    def undress(self, payload: Payload, body: bytes) -> bytes:
        if not self._lists:
            return body
        try:
            (answer,) = msgspec.json.decode(body, type=list[msgspec.Raw])
        except (ValueError, msgspec.MsgspecError) as error:
            raise WrongAnswer(f"no list of one answer: {body[:120]!r}") from error
        return bytes(answer)


class V2Text(_Adapted):
    """A BYTES tensor over the Open Inference Protocol (MLServer)."""

    @override
    def dress(self, payload: Payload) -> Payload:
        tensor = {
            "name": "inputs", "shape": [1], "datatype": "BYTES", "data": [_value(payload)],
            "parameters": {"content_type": "str"},
        }  # fmt: skip
        body = msgspec.json.encode({"inputs": [tensor]})
        return replaced(payload, path=f"/v2/models/{self.model}/infer", body=body, content_type="application/json")

    @override
    def undress(self, payload: Payload, body: bytes) -> bytes:
        try:
            answer = json.loads(body)["outputs"][0]["data"][0]
        except (KeyError, IndexError, ValueError) as error:
            raise WrongAnswer(f"no answer tensor: {body[:120]!r}") from error
        return str(answer).encode()


class Direct(_Adapted):
    """Triton itself: the client has done the pre-processing and reads the raw output.

    An upper bound rather than a peer: tokenising and decoding happen before the run, not in it.
    """

    def __init__(self, source: Workload, folder: Path, *, variants: int = 256) -> None:
        super().__init__(source)
        self._task = OnnxTask(folder)
        self._kinds = {item.name: item.type for item in self._task.session.get_inputs()}
        output = self._task.session.get_outputs()[0]
        self._width = int(output.shape[-1])
        self._unique = [self._tensors(source.unique(index)) for index in range(variants)]
        self._golden = [self._tensors(source.golden(number)) for number in range(source.goldens)]

    @override
    def golden(self, number: int) -> Payload:
        return replaced(self._golden[number], expected=self.source.golden(number).expected)

    @override
    def unique(self, index: int) -> Payload:
        return self._unique[index % len(self._unique)]

    def _tensors(self, payload: Payload) -> Payload:
        feeds = self._task.feeds([self._task.decode(payload.body)], bucketed=True)
        datatypes = {"tensor(int64)": "INT64", "tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
        tensors = [
            (name, datatypes[self._kinds[name]], array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in feeds.items()
        ]
        body, headers = infer_body(tensors, [self._task.output])
        return Payload(
            f"/v2/models/{self.model}/infer", body, "application/octet-stream", headers, payload.golden,
            message=infer_message(self.model, tensors),
        )  # fmt: skip

    @override
    def undress(self, payload: Payload, body: bytes) -> bytes:
        if len(body) < self._width * 4:
            raise WrongAnswer(f"{len(body)} bytes are no {self._width} numbers")
        row = np.frombuffer(body[-self._width * 4 :], dtype="<f4")
        return msgspec.json.encode(self._task.encode(row))


def _file(field: str, payload: Payload) -> bytes:
    """A form with the payload as its one file."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="picture"\r\n'
        f"Content-Type: {payload.content_type}\r\n\r\n"
    )
    return b"".join((head.encode(), payload.body, f"\r\n--{BOUNDARY}--\r\n".encode()))


def _value(payload: Payload) -> str:
    """The input as a string: the text, or the picture in base64."""
    if payload.content_type == "application/json":
        return str(json.loads(payload.body)["inputs"])
    return base64.b64encode(payload.body).decode()


def replaced(payload: Payload, **changes: Any) -> Payload:
    """A payload with other fields."""
    fields = {name: getattr(payload, name) for name in Payload.__slots__}
    return Payload(**{**fields, **changes})


def references(task: str, seed: int, repository: Path) -> dict[int, Any]:
    """Answers to the golden inputs, computed here by the plain way: what every server must come to."""
    source = WORKLOADS[task](seed)
    plain = OnnxTask(repository / source.model)
    found = {}
    for number in range(source.goldens):
        payload = source.golden(number)
        (row,) = plain.infer([plain.decode(payload.body)])
        found[number] = source.parse(payload, msgspec.json.encode(plain.encode(row)))
    return found


def for_peer(name: str, task: str, seed: int, repository: Path) -> Workload:
    """The workload of ``task`` for a peer, ``triton`` or ``tidegate``; answers must match :func:`references`."""
    source = WORKLOADS[task](seed)
    if name == "tidegate":
        workload: Workload = source
    elif name == "triton":
        workload = Direct(source, repository / source.model)
    elif PEERS[name].v2:
        workload = V2Text(source)
    else:
        workload = Predict(source, form=PEERS[name].form, lists=PEERS[name].lists)
    for number, answer in references(task, seed, repository).items():
        workload.expect(number, answer)
    return workload
