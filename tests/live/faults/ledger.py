"""The client's own books: what was asked, what was answered, and whether Triton and the usage table agree."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from tests.live.faults.conftest import Fleet

_NUMBERS = itertools.count(1_000_000)  # other tests use smaller ones


@dataclass
class Entry:
    """One request, sent once: no client library repeats it."""

    number: int
    status: int
    """0: no answer came."""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def usage_id(self) -> str:
        """The gateway's name for it."""
        return self.headers.get("x-request-id", "")

    @property
    def right(self) -> bool:
        """Whether a 200 carries this request's own answer."""
        return self.status == 200 and httpx.Response(200, content=self.body).json()["outputs"][0]["data"] == [
            self.number * 3 + 1.0
        ]


class ClientLedger:
    """Sends requests to ``recorder`` or ``solo`` and keeps what came of them."""

    def __init__(
        self, fleet: Fleet, *, model: str = "recorder", milliseconds: float = 2.0, timeout_s: float = 10.0
    ) -> None:
        self._fleet = fleet
        self._model = model
        self._milliseconds = milliseconds
        self._timeout_s = timeout_s
        self.entries: list[Entry] = []

    async def ask(self, client: httpx.AsyncClient, milliseconds: float | None = None) -> Entry:
        """One request with a number of its own."""
        number = next(_NUMBERS)
        wait = self._milliseconds if milliseconds is None else milliseconds
        tensor = {"name": "INPUT", "shape": [1, 2], "datatype": "FP64", "data": [float(number), wait]}
        body = {"inputs": [tensor], "parameters": {"timeout": int(self._timeout_s * 1e6)}}
        begin = time.monotonic()
        try:
            answer = await client.post(f"/v2/models/{self._model}/infer", json=body)
            entry = Entry(number, answer.status_code, answer.content, dict(answer.headers))
        except httpx.TransportError:
            entry = Entry(number, 0)
        entry.elapsed_s = time.monotonic() - begin
        self.entries.append(entry)
        return entry

    async def load(self, clients: int, until: Callable[[], bool], limit_s: float = 30.0) -> None:
        """``clients`` of them, each asking again as soon as it is answered, until ``until()`` or ``limit_s``."""
        deadline = time.monotonic() + limit_s

        async def one(client: httpx.AsyncClient) -> None:
            while not until() and time.monotonic() < deadline:
                entry = await self.ask(client)
                if entry.status != 200:
                    await asyncio.sleep(0.02)

        async with self.client() as client:
            await asyncio.gather(*(one(client) for _ in range(clients)))
        assert time.monotonic() < deadline, f"not reached within {limit_s:g} s: {self.statuses}"

    def client(self) -> httpx.AsyncClient:
        """With the key, and a time-out that no answer of the gateway should reach."""
        return httpx.AsyncClient(
            base_url=self._fleet.gateway.url,
            headers=self._fleet.gateway.headers,
            timeout=self._timeout_s + 10,
            limits=httpx.Limits(max_connections=None),
        )

    @property
    def statuses(self) -> Counter[int]:
        """How often each status came."""
        return Counter(entry.status for entry in self.entries)

    def count(self, *statuses: int) -> int:
        """How many answers have one of these."""
        return sum(entry.status in statuses for entry in self.entries)

    def check(self, poll: Callable[..., None], allowed: set[int]) -> None:
        """No wrong answer, nothing executed twice, nothing but ``allowed`` statuses, and every book agrees."""
        assert self.statuses.keys() <= allowed, self.statuses
        executed: Counter[int] = Counter()
        for triton in self._fleet.tritons:
            executed += triton.executed()
        for entry in self.entries:
            assert entry.status != 200 or entry.right, entry
            assert executed[entry.number] <= 1, f"{entry} was executed {executed[entry.number]} times"
            assert entry.status != 200 or executed[entry.number] == 1, f"{entry} was never executed"
            assert entry.status != 503 or executed[entry.number] == 0, f"{entry} was executed all the same"
            if entry.status == 503:
                assert int(entry.headers["retry-after"]) >= 1
            if entry.status >= 500:
                assert set(httpx.Response(200, content=entry.body).json()) == {"error"}, entry
                assert b"127.0.0.1" not in entry.body
        self._check_usage(poll)

    def _check_usage(self, poll: Callable[..., None]) -> None:
        wanted = {entry.usage_id for entry in self.entries if entry.status == 200}
        gateway = self._fleet.gateway
        poll(lambda: wanted <= gateway.ended().keys(), 30, "the usage records")
        known = {entry.usage_id for entry in self.entries}
        poll(lambda: known.isdisjoint(gateway.usage().keys() - gateway.ended().keys()), 30, "an end for every call")
        rows = gateway.usage()
        for entry in self.entries:
            state, status, billed = rows.get(entry.usage_id, ("", 0, 0))
            if entry.status == 200:
                assert (state, status) == ("completed", 200), (entry, state, status)
            elif state:  # refused before admission: no row
                assert (state, status, billed) == ("failed", entry.status, 0), (entry, state, status, billed)


async def eventually(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    """Wait until ``condition`` is true; it may block, it runs in a thread."""
    deadline = time.monotonic() + limit_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"did not come true within {limit_s:g} s"
        await asyncio.sleep(0.02)
