"""How an answer counts, whichever client got it."""

from __future__ import annotations

from benchmarks.recording import Outcome
from benchmarks.workloads import Payload, Workload, WrongAnswer

FAILED = 0
"""Status of a request that got no answer: refused, broken off, not HTTP."""
EXPIRED = -1
"""Status of a request that was given up at its deadline."""
WITHDRAWN = -2
"""Status of a request that the scenario cancelled."""
DEADLINE_PASSED = 504
"""The server gave a request up: no fault in its answer, but too late."""


def outcome_of(workload: Workload, payload: Payload, status: int, body: bytes) -> tuple[Outcome, str | None]:
    """The outcome of ``payload``, and the fault's text if it is one. ``status`` is HTTP's or one of the above."""
    if 200 <= status < 300:
        try:
            workload.check(payload, body)
        except WrongAnswer as error:
            return Outcome.WRONG, f"wrong answer: {error}"
        return Outcome.OK, None
    if status in (429, 503):
        return Outcome.SHED, None
    if status in (EXPIRED, DEADLINE_PASSED):
        return Outcome.TIMEOUT, None
    if status == WITHDRAWN:
        return Outcome.CANCELLED, None
    text = "no answer" if status == FAILED else f"HTTP {status}: {body[:160].decode('utf-8', 'replace')}"
    return Outcome.ERROR, text
