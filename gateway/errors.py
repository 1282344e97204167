"""The error tree: what went wrong, whose fault it is, and what a client may read about it.

Every dialect renders these in its own body; nothing else ever reaches a client. ``message`` is
public: it never holds a secret, a path, an upstream's host name or Triton's own text.
"""

from __future__ import annotations

from typing import ClassVar

from gateway.redaction import redact

MAX_MESSAGE = 500
"""Characters of a message that may repeat what the caller sent; as a gRPC trailer it must fit into 16 KiB."""


class GatewayError(Exception):
    """Root of the tree: ``status`` is HTTP's, ``code`` a stable machine-readable name."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
        self.param = None if param is None else redact(param)
        """The field at fault, where there is one."""
        self.retry_after_s = retry_after_s
        """Seconds to wait; jittered by whoever raises it."""
        self.headers = headers or {}
        """Further response headers (``Allow``, ``RateLimit``, …)."""


class ClientError(GatewayError):
    """The caller's to mend."""


class Malformed(ClientError):
    """The bytes are not what the protocol says: bad JSON, bad framing, bad header."""

    status, code = 400, "malformed"


class Unauthenticated(ClientError):
    """No key, or one that is not valid; which of the two is not said."""

    status, code = 401, "unauthenticated"


class BudgetExceeded(ClientError):
    """The key's, project's or organisation's budget for the period is spent."""

    status, code = 402, "budget_exceeded"


class Forbidden(ClientError):
    """A valid key without the right: scope, model list, address list."""

    status, code = 403, "forbidden"


class NotFound(ClientError):
    """No such model, version, route, key."""

    status, code = 404, "not_found"


class MethodNotAllowed(ClientError):
    """The route exists, the method does not; ``headers`` has ``Allow``."""

    status, code = 405, "method_not_allowed"


class NotAcceptable(ClientError):
    """Nothing that ``Accept`` allows can be produced."""

    status, code = 406, "not_acceptable"


class ClientTimeout(ClientError):
    """The request did not arrive in time."""

    status, code = 408, "client_timeout"


class Conflict(ClientError):
    """The same idempotency key is in progress, or a name is taken."""

    status, code = 409, "conflict"


class InProgress(Conflict):
    """An earlier request with the same idempotency key is not over; with ``retry_after_s``."""

    code, retryable = "idempotency_in_progress", True


class AnswerLost(Conflict):
    """A request with the same idempotency key was, or may have been, executed, and cannot be answered again."""

    code = "idempotency_answer_lost"


class TooLarge(ClientError):
    """Body, message or image over its limit."""

    status, code = 413, "too_large"


class UnsupportedMediaType(ClientError):
    """Content-Type, Content-Encoding or image format that is not served."""

    status, code = 415, "unsupported_media_type"


class Invalid(ClientError):
    """Well-formed but wrong: tensor name, shape, datatype, option, text too long."""

    status, code = 422, "invalid"


class KeyReused(Invalid):
    """An idempotency key that another request was sent with."""

    code = "idempotency_key_reused"


class RateLimited(ClientError):
    """Over a rate, concurrency, token or pixel limit; always with ``retry_after_s``."""

    status, code, retryable = 429, "rate_limited", True


class HeadersTooLarge(ClientError):
    """Too many headers, or one that is too large."""

    status, code = 431, "headers_too_large"


class ClientClosed(ClientError):
    """The client went away; 499 stands in logs and metrics only."""

    status, code = 499, "client_closed"


class ServiceError(GatewayError):
    """Ours, or our upstream's."""


class Internal(ServiceError):
    """A defect. Logged with its stack; the client learns the request id and nothing else."""


class NotImplementedHere(ServiceError):
    """The protocol has it, this model or gateway does not."""

    status, code = 501, "not_implemented"


class BadUpstream(ServiceError):
    """Triton broke off mid-request or answered what it should not; it may have executed."""

    status, code = 502, "bad_upstream"


class Unavailable(ServiceError):
    """Nothing was executed: not ready, shed, draining, ledger full; with ``retry_after_s``."""

    status, code, retryable = 503, "unavailable", True


class DeadlineExceeded(ServiceError):
    """The deadline passed; the upstream call was cancelled."""

    status, code = 504, "deadline_exceeded"
