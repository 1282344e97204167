"""What went wrong at Triton, in the gateway's own errors. Triton's text never leaves: it names paths and hosts.

What matters to the caller of a failed inference is whether it may have been executed:
:class:`NotExecuted` may be tried on another server, everything else may not.
"""

from __future__ import annotations

import re

import grpc

from gateway.errors import BadUpstream, GatewayError, Invalid, NotFound, Unavailable

# The texts below are those of gRPC's core and of Triton 2.51 to 2.6x; an unknown one falls to the
# careful side: "may have been executed".
NOT_CONNECTED = re.compile(
    r"failed to connect|connections to all backends failing|name resolution|errors resolving|empty address list", re.I
)
_SHED = re.compile(r"exceeds maximum queue size|request timeout expired|queue.*(full|timeout)", re.I)
_NOT_READY = re.compile(
    r"unknown model|is not ready|not found|no version is available|server not ready|shutting down", re.I
)
# A model's own error (INTERNAL) may say "not found" too: it was executed.
_NOT_READY_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN})
_DEVICE = re.compile(
    r"out of memory|failed to allocate memory|bad_alloc|cuda (error|failure)|cudnn_status|cublas_status"
    r"|device-side assert",
    re.I,
)
_STUB_DIED = re.compile(r"stub process|not healthy", re.I)


class NotExecuted(Unavailable):
    """The server was not reached: another one may be tried."""


class ModelNotReady(NotExecuted):
    """The server is there, the model is not ready on it."""


class DeviceFailed(Unavailable):
    """The server's device is out of memory or broken. The request has no result, and is over; others fare alike."""


class ModelFailed(BadUpstream):
    """Triton answered that the model raised an error: the request has no result, and is over."""


def is_refusal(details: str) -> bool:
    """Whether Triton says that it did not begin: its queue is full, or the model is not there."""
    return bool(_SHED.search(details) or _NOT_READY.search(details))


def translate_text(details: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> GatewayError:
    """Our error for Triton's, from its text and status."""
    if _SHED.search(details):
        return Unavailable("the model's queue is full", retry_after_s=1.0)
    if _DEVICE.search(details):
        return DeviceFailed("the model's device cannot take more work now", retry_after_s=1.0)
    if _STUB_DIED.search(details):
        return BadUpstream("the model's process died; the request may have been executed")
    if code in _NOT_READY_CODES and _NOT_READY.search(details):
        return ModelNotReady("the model is not ready", retry_after_s=1.0)
    if code == grpc.StatusCode.NOT_FOUND:
        return NotFound("no such model or version")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return Invalid("the model does not accept this input")
    return ModelFailed("the model failed on this request")
