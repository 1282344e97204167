"""The values that travel through the gateway: one noun each, no I/O, nothing imported from above.

Structs of msgspec rather than dataclasses: every request makes a dozen of them, and a frozen dataclass
takes several times as long to make.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import field

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
"""Tensor datatypes of the Open Inference Protocol, with Triton's BF16."""

ParameterValue = bool | int | float | str

WHOLE_ANSWER = "tidegate.http.whole_answer"
"""The transport's ASGI extension: its member ``send`` sends status, headers and body at once."""


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor in the protocol's raw representation.

    ``data`` is little-endian and row-major; BOOL is one byte an element; a BYTES element is a
    uint32 length and its bytes (Open Inference Protocol, binary tensor extension). Keeping this one
    representation means that a tensor crosses the gateway without being parsed.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


class InferenceRequest(msgspec.Struct, frozen=True):
    """One inference, as every dialect and every task asks for it."""

    model: str
    inputs: tuple[Tensor, ...]
    version: str = ""
    """Empty: the newest that Triton serves."""
    outputs: tuple[str, ...] = ()
    """Empty: all outputs."""
    id: str = ""
    parameters: dict[str, ParameterValue] = {}
    priority: int = 0
    trace: tuple[tuple[str, str], ...] = ()
    """W3C trace context that travels to Triton as call metadata; empty: the client sent none."""
    idempotent: bool = False
    """Whether it may be tried on another server although the first may have executed it."""
    queues: bool = False
    """Whether it waits for its turn in Triton, and not here: there only a call over gRPC can be taken back."""

    @property
    def rows(self) -> int:
        """Inferences that the first dimension stands for (1 for a model without batching)."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1


class InferenceResult(msgspec.Struct, frozen=True):
    """Triton's answer to one :class:`InferenceRequest`."""

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: dict[str, ParameterValue] = {}

    def output(self, name: str) -> Tensor:
        """The output called ``name``; ``KeyError`` if the model did not return it."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise KeyError(name)


class Units(msgspec.Struct, frozen=True):
    """What a request is billed and limited by."""

    tokens: int = 0
    pixels: int = 0
    rows: int = 0
    """Inferences: rows of all tensors sent, padding rows not counted."""


class Plan(msgspec.Struct, frozen=True):
    """What a call comes down to: inferences to run, and how their results become the answer.

    A raw inference is a plan of one request; a task call may be many (a batch of texts, the windows
    of a long context). ``finish`` gets the results in the order of ``requests``.
    """

    requests: tuple[InferenceRequest, ...]
    units: Units
    finish: Callable[[Sequence[InferenceResult]], Any]


Scope = Literal["infer", "usage:read", "models:admin", "keys:admin", "audit:read"]
SCOPES: tuple[Scope, ...] = ("infer", "usage:read", "models:admin", "keys:admin", "audit:read")


class Principal(msgspec.Struct, frozen=True):
    """Who calls: the outcome of a verified key or token."""

    key_id: str
    project: str
    organisation: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    """Model names the caller may use; None means all."""
    tier: str = "default"
    test: bool = False
    """True for ``tg_test_`` keys: metered, never billed."""

    def may_use(self, model: str) -> bool:
        """Whether the model list grants ``model``."""
        return self.models is None or model in self.models


class Permit(Protocol):
    """The right to be in flight."""

    def leave(self, call: Call) -> None:
        """Give it back; idempotent."""
        ...


class Call(msgspec.Struct, eq=False):
    """One client request on its way through the gateway, from first byte to last.

    Owned by the endpoint that received it; the pipeline fills it in. ``stages`` holds nanoseconds
    by stage name (``auth``, ``admit``, ``preprocess``, ``infer``, ``postprocess``, ``record``) for
    ``Server-Timing`` and the duration histogram.
    """

    usage_id: str
    """UUIDv7 made by the gateway: the identity of the usage record."""
    request_id: str
    """What ``X-Request-Id`` says: the client's own if acceptable, else the usage id."""
    dialect: str
    """kserve_http, kserve_grpc, huggingface, openai, tei."""
    operation: str
    """infer, a task's name, …"""
    credential: str | None = None
    """Never shown: logs and tracebacks print calls."""
    client_address: str = ""
    received_ns: int = field(default_factory=time.monotonic_ns)
    deadline_ns: int | None = None
    """Monotonic clock; None means no deadline."""
    trace_parent: str | None = None
    trace_state: str | None = None
    span: object | None = None
    """The call's span while it is being traced."""
    idempotency_key: str | None = None
    """The client's own, unchecked; None: it sent none."""
    idempotent: bool = False
    """Its key is reserved: it may be executed again where it is not known whether it was."""
    reserve_key: Callable[[], Awaitable[None]] | None = None
    """Reserves the idempotency key; awaited when the call has been admitted, so that refusals write nothing."""
    bytes_in: int = 0
    bytes_out: int = 0
    principal: Principal | None = None
    model: str = ""
    units: Units = Units()
    delivered: bool = False
    """Of a stream: a part of the answer was handed on."""
    estimated_compute_ns: int = 0
    """Compute time expected for ``units`` from recent statistics; the ledger settles the real one."""
    estimated_cost_usd: float = 0.0
    stages: dict[str, int] = {}
    headers: dict[str, str] = {}
    """Response headers that admission adds (rate-limit headers)."""
    permit: Permit | None = None
    """Held from admission until the call is closed; None outside of that."""

    def __repr__(self) -> str:
        return f"Call({self.usage_id}, {self.dialect} {self.operation}, model={self.model!r})"

    def remaining_s(self) -> float | None:
        """Seconds left until the deadline, at least 0; None without a deadline."""
        if self.deadline_ns is None:
            return None
        return max(0.0, (self.deadline_ns - time.monotonic_ns()) / 1e9)
