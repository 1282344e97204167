"""The one interface of the load clients, and which of them a URL asks for."""

from __future__ import annotations

from typing import Protocol

from typing_extensions import Self

from benchmarks.grpc_client import GrpcPool
from benchmarks.http_client import Done, Exchange, HttpPool
from benchmarks.judgement import WITHDRAWN, outcome_of
from benchmarks.recording import Outcome
from benchmarks.workloads import Payload, Workload


class Client(Protocol):
    """Sends prepared requests; :class:`HttpPool` and :class:`GrpcPool` are the two."""

    dropped: int
    """Requests that were never sent: the client's queue was full."""
    queued: int
    """Requests that waited in the client because no further connection was allowed."""
    most_connections: int

    async def __aenter__(self) -> Self:
        """Open."""
        ...

    async def __aexit__(self, *_: object) -> None: ...

    def encode(self, payload: Payload, key: str | None = None) -> bytes:
        """Bytes for :meth:`submit`; those of HTTP hold the key."""
        ...

    async def warm(self, connections: int) -> None:
        """Connect beforehand. Raises ``OSError``."""
        ...

    def submit(self, request: bytes, done: Done, key: str | None = None) -> Exchange:
        """Send; ``done`` is called once with the finished exchange. ``key`` is the one given to :meth:`encode`."""
        ...

    def cancel(self, exchange: Exchange, status: int = WITHDRAWN) -> None:
        """Give a request up, visibly to the server."""
        ...

    async def post(self, payload: Payload) -> Exchange:
        """Send one request and wait for it."""
        ...


def connect(url: str, key: str | None, *, limit: int = 1024, timeout_s: float = 10.0) -> Client:
    """A client for ``http://…`` or ``grpc://host:port``."""
    if url.startswith("grpc://"):
        return GrpcPool(url, key, channels=max(1, min(limit, 4)), timeout_s=timeout_s)
    return HttpPool(url, key, limit=limit, timeout_s=timeout_s)


def judge(workload: Workload, payload: Payload, exchange: Exchange) -> tuple[Outcome, str | None]:
    """How a finished exchange counts, and the fault's text if it is one."""
    return outcome_of(workload, payload, exchange.status, exchange.body)
