"""The values that travel through the gateway: one noun each, no I/O, nothing imported from above."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
"""Tensor datatypes of the Open Inference Protocol, with Triton's BF16."""

ParameterValue = bool | int | float | str


@dataclass(slots=True, frozen=True)
class Tensor:
    """A named tensor in the protocol's raw representation.

    ``data`` is little-endian and row-major; BOOL is one byte an element; a BYTES element is a
    uint32 length and its bytes (Open Inference Protocol, binary tensor extension). Keeping this one
    representation means that a tensor crosses the gateway without being parsed.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


@dataclass(slots=True, frozen=True)
class InferenceRequest:
    """One inference, as every dialect and every task asks for it."""

    model: str
    inputs: tuple[Tensor, ...]
    version: str = ""
    """Empty: the newest that Triton serves."""
    outputs: tuple[str, ...] = ()
    """Empty: all outputs."""
    id: str = ""
    parameters: dict[str, ParameterValue] = field(default_factory=dict)
    priority: int = 0
    trace: tuple[tuple[str, str], ...] = ()
    """W3C trace context that travels to Triton as call metadata; empty: the client sent none."""
    idempotent: bool = False
    """Whether it may be tried on another server although the first may have executed it."""

    @property
    def rows(self) -> int:
        """Inferences that the first dimension stands for (1 for a model without batching)."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1


@dataclass(slots=True, frozen=True)
class InferenceResult:
    """Triton's answer to one :class:`InferenceRequest`."""

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: dict[str, ParameterValue] = field(default_factory=dict)

    def output(self, name: str) -> Tensor:
        """The output called ``name``; ``KeyError`` if the model did not return it."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise KeyError(name)


@dataclass(slots=True, frozen=True)
class Units:
    """What a request is billed and limited by."""

    tokens: int = 0
    pixels: int = 0
    rows: int = 0
    """Inferences: rows of all tensors sent, padding rows not counted."""


@dataclass(slots=True, frozen=True)
class Plan:
    """What a call comes down to: inferences to run, and how their results become the answer.

    A raw inference is a plan of one request; a task call may be many (a batch of texts, the windows
    of a long context). ``finish`` gets the results in the order of ``requests``.
    """

    requests: tuple[InferenceRequest, ...]
    units: Units
    finish: Callable[[Sequence[InferenceResult]], Any]


Scope = Literal["infer", "usage:read", "models:admin", "keys:admin", "audit:read"]
SCOPES: tuple[Scope, ...] = ("infer", "usage:read", "models:admin", "keys:admin", "audit:read")


@dataclass(slots=True, frozen=True)
class Principal:
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


@dataclass(slots=True)
class Call:
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
    credential: str | None = field(default=None, repr=False)
    """Never shown: logs and tracebacks print calls."""
    client_address: str = ""
    received_ns: int = field(default_factory=time.monotonic_ns)
    deadline_ns: int | None = None
    """Monotonic clock; None means no deadline."""
    trace_parent: str | None = None
    trace_state: str | None = None
    span: object | None = field(default=None, repr=False)
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
    estimated_compute_ns: int = 0
    """Compute time expected for ``units`` from recent statistics; the ledger settles the real one."""
    estimated_cost_usd: float = 0.0
    stages: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Response headers that admission adds (rate-limit headers)."""
    permit: Permit | None = None
    """Held from admission until the call is closed; None outside of that."""

    def remaining_s(self) -> float | None:
        """Seconds left until the deadline, at least 0; None without a deadline."""
        if self.deadline_ns is None:
            return None
        return max(0.0, (self.deadline_ns - time.monotonic_ns()) / 1e9)
