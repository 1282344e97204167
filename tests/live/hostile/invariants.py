"""What must hold after every hostile request, whatever it was. Used by all tests of this folder::

    def test_row_20(invariants):                       # fixture of conftest.py: the shared stack's gateway
        with invariants.case() as case:
            (answer,) = talk(invariants.gateway.url, b"POST / HTTP/1.1\\r\\nContent-Length: -1\\r\\n\\r\\n")
            case.refused(answer, 400, "plain")

``refused`` checks one answer: the stated status (one, or any of several), the error body of the dialect
that was called, the request id. ``see`` only remembers an answer (a success, or one of many). At its end
the case checks what was not stated otherwise in its arguments:

- the process lives, ``/healthz/live`` and ``/healthz/ready`` are 200, and a good inference succeeds;
- the usage ledger took in exactly ``usage`` (``{"client_closed": 1}``; default: nothing) and is consistent;
- resident memory grew by at most ``growth_mib``;
- ``audited`` audit records were written (default: not looked at);
- no secret, stack trace, path, upstream address or text of Triton's in any answer that was seen or in the
  gateway's log since the case began, and no line of level error there (``log_allows``: events that may).

For a gateway of a test's own: ``Invariants(Gateway(…))``; see :mod:`tests.live.hostile.second`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx

ROOT = Path(__file__).parents[3]
SETTLE_S = 15.0
GOOD = {"inputs": [{"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+/=@-]{1,128}")
_TRACES = ("Traceback (most recent call last)", 'File "', "site-packages", "Error: <", "object at 0x")
_TRITON_TEXTS = (
    "ipv4:127", "ipv6:", "StatusCode.", "grpc_status", "grpc_message", "AioRpcError", "[request id:",
    "onnx runtime error", "TritonModelException", "failed to connect to all addresses", "unknown_shm",
)  # fmt: skip
"""Words of Triton's, its backends' and gRPC's own messages; none of them is in a message of the gateway's."""
_STATES = ("completed", "failed", "client_closed", "unknown", "dropped")


class AnswerLike(Protocol):
    """``httpx.Response`` and :class:`tests.live.hostile.wire.Answer`."""

    status_code: int
    headers: httpx.Headers

    @property
    def content(self) -> bytes: ...

    @property
    def text(self) -> str: ...

    def json(self) -> Any: ...


@dataclass
class Gateway:
    """A gateway under test, and what of it must never be seen by a client."""

    url: str
    grpc_address: str
    metrics_url: str
    log_file: Path
    key: str = field(repr=False)
    """Good for an inference of ``identity`` at any time."""
    secrets: tuple[str, ...] = field(repr=False, default=())
    """Further keys; never in an answer or a log line."""
    private: tuple[str, ...] = ()
    """Paths and upstream addresses; never in an error or a log line."""
    auditor: Callable[[], int] | None = None
    """How many audit records there are."""

    @property
    def headers(self) -> dict[str, str]:
        """The key as a header."""
        return {"authorization": f"Bearer {self.key}"}


class Invariants:
    """Watches one gateway; :meth:`case` for each hostile request, or for each group of like ones."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._http = httpx.Client(base_url=gateway.url, headers=gateway.headers, timeout=60.0)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def case(
        self,
        *,
        usage: Mapping[str, int] | None = None,
        growth_mib: float = 32.0,
        audited: int | None = None,
        log_allows: Collection[str] = (),
    ) -> Iterator[Case]:
        """What is asserted at the end of the block: the module says it."""
        before, log_size = self.metrics(), self._log_size()
        audit_before = self._audit_count() if audited is not None else 0
        case = Case(self.gateway)
        yield case
        self.check_usage(before, usage or {})
        self.check_alive()
        after = self.metrics()
        grown = (after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]) / 2**20
        assert grown <= growth_mib, f"memory grew by {grown:.1f} MiB"
        assert after["process_start_time_seconds"] == before["process_start_time_seconds"], "the gateway was restarted"
        if audited is not None:
            self._check_audit(audit_before + audited)
        for answer in case.answers:
            self._check_answer(answer)
        self._check_log(log_size, log_allows)

    # --- the parts, for tests that need one alone

    def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics``; labelled ones as ``name{label="value"}``."""
        text = httpx.get(self.gateway.metrics_url, timeout=30.0).text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def ledger(self) -> dict[str, float]:
        """Usage records by state, since the gateway's start."""
        return _states(self.metrics())

    def check_alive(self) -> None:
        """Health is good, and a good request succeeds, right now."""
        for path in ("/healthz/live", "/healthz/ready"):
            answer = self._http.get(path)
            assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        answer = self._http.post("/v2/models/identity/infer", json=GOOD)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == GOOD["inputs"][0]["data"]

    def check_usage(self, before: Mapping[str, float], usage: Mapping[str, int]) -> None:
        """The ledger took in ``usage`` since the sample ``before``, and nothing is in flight any more."""
        wanted = {state: _states(before)[state] + usage.get(state, 0) for state in _STATES}
        deadline = time.monotonic() + SETTLE_S
        while True:
            now = self.metrics()
            if _states(now) == wanted and now["tidegate_ledger_inflight"] == 0:
                break
            assert time.monotonic() < deadline, f"usage records: {_states(now)}, expected {wanted}"
            time.sleep(0.05)
        assert now["tidegate_ledger_consistent"] == 1

    def usage_record(self, request_id: str, timeout_s: float = SETTLE_S) -> dict[str, Any]:
        """The usage record of the request with this id, once it has reached the database and is settled."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._http.get("/admin/usage/records", params={"limit": 1000})
            assert answer.status_code == 200, answer.text
            for record in answer.json()["usage"]:
                if record["request_id"] == request_id and record["state"] != "reserved":
                    return dict(record)
            assert time.monotonic() < deadline, f"no usage record of request {request_id}"
            time.sleep(0.1)

    def log_since(self, size: int) -> list[str]:
        """Lines of the gateway's log after its first ``size`` bytes."""
        with self.gateway.log_file.open("rb") as log:
            log.seek(size)
            return log.read().decode("utf-8", "replace").splitlines()

    # --- inner

    def _log_size(self) -> int:
        return self.gateway.log_file.stat().st_size

    def _audit_count(self) -> int:
        assert self.gateway.auditor is not None, "this gateway's audit cannot be read"
        return self.gateway.auditor()

    def _check_audit(self, wanted: int) -> None:
        deadline = time.monotonic() + SETTLE_S
        while (count := self._audit_count()) < wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        assert count == wanted, f"{count} audit records, expected {wanted}"

    def _check_answer(self, answer: AnswerLike) -> None:
        everything = answer.text + "\n" + "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        assert_none_of(self._secrets(), everything, "an answer")
        if answer.status_code >= 400:
            assert_none_of((*self._private(), *_TRACES, *_TRITON_TEXTS), everything, "an error")
            assert answer.status_code != 500, everything

    def _check_log(self, size: int, allowed: Collection[str]) -> None:
        for line in self.log_since(size):
            assert_none_of(self._secrets(), line, "the log")
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line), f"control characters in the log: {line!r}"
            event = _event(line)
            if event.get("event") in allowed:
                continue
            assert event.get("level") not in {"error", "critical"}, line
            assert_none_of((*self._private(), *_TRACES, *_TRITON_TEXTS), line, "the log")

    def _secrets(self) -> tuple[str, ...]:
        return (self.gateway.key, *self.gateway.secrets)

    def _private(self) -> tuple[str, ...]:
        return (str(ROOT), str(Path.home()), *self.gateway.private)


class Case:
    """One hostile request, or several: the answers that were seen."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.answers: list[AnswerLike] = []

    def see(self, answer: AnswerLike | None) -> AnswerLike:
        """Remember ``answer`` for the check of what it shows."""
        assert answer is not None, "the connection was closed without an answer"
        self.answers.append(answer)
        return answer

    def refused(self, answer: AnswerLike | None, status: int | Collection[int], dialect: str) -> AnswerLike:
        """``answer`` has (one of) the stated status, and the error body of ``dialect``."""
        seen = self.see(answer)
        stated = {status} if isinstance(status, int) else set(status)
        assert seen.status_code in stated, f"{seen.status_code} instead of {stated}: {seen.text[:500]}"
        assert_error_body(seen, dialect)
        return seen

    def grpc_refused(self, error: grpc.RpcError, code: grpc.StatusCode | Collection[grpc.StatusCode]) -> None:
        """The call's error has (one of) the stated status codes, a message, and the request id in its trailers."""
        stated = {code} if isinstance(code, grpc.StatusCode) else set(code)
        assert error.code() in stated, f"{error.code()}: {error.details()}"
        assert error.details()
        trailers = dict(error.trailing_metadata() or ())
        assert _REQUEST_ID.fullmatch(trailers["x-request-id"])
        headers = httpx.Headers(trailers)
        self.answers.append(httpx.Response(400, headers=headers, text=error.details()))


def assert_error_body(answer: AnswerLike, dialect: str) -> None:
    """The error body of ``dialect``, which is one of those in :data:`BODIES`, and ``X-Request-Id``."""
    request_id = answer.headers.get("x-request-id", "")
    assert _REQUEST_ID.fullmatch(request_id), f"X-Request-Id: {request_id!r}"
    if dialect == "tei" and answer.status_code == 401:
        assert answer.content == b""  # what TEI itself answers
        return
    body = answer.json()
    problem = BODIES[dialect](body, answer)
    assert not problem, f"{problem}: {answer.text[:500]}"
    if "request_id" in body:
        assert body["request_id"] == request_id
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"]
    if answer.status_code == 405:
        assert answer.headers["allow"]
    if answer.status_code in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1


def assert_none_of(texts: Collection[str], where: str, what: str) -> None:
    """Fail if one of ``texts`` stands in ``where``, without showing a secret in full."""
    for text in texts:
        assert text not in where, f"{text[:12]}… in {what}: {where.replace(text, '…')[:500]}"


def _flat(members: set[str]) -> Callable[[Any, AnswerLike], str]:
    def check(body: Any, _answer: AnswerLike) -> str:
        if not isinstance(body, dict) or set(body) != members:
            return f"the body should have {sorted(members)}"
        return "" if isinstance(body["error"], str) and body["error"] else "the error should be a text"

    return check


def _openai(body: Any, _answer: AnswerLike) -> str:
    if not isinstance(body, dict) or set(body) != {"error"} or not isinstance(body["error"], dict):
        return "the body should be an error object"
    if set(body["error"]) != {"message", "type", "param", "code"} or not body["error"]["message"]:
        return "the error should have message, type, param and code"
    return ""


def _problem(body: Any, answer: AnswerLike) -> str:
    if not answer.headers["content-type"].startswith("application/problem+json"):
        return "not a problem document"
    return "" if body["status"] == answer.status_code and body["title"] and body["detail"] else "incomplete"


BODIES: dict[str, Callable[[Any, AnswerLike], str]] = {
    "oip": _flat({"error"}),
    "hf": _flat({"error", "error_type", "request_id"}),
    "tei": _flat({"error", "error_type"}),
    "openai": _openai,
    "control": _flat({"error", "request_id"}),
    "plain": _flat({"error", "code", "request_id"}),
    "admin": _problem,
}
"""Dialect → what is wrong with an error's body; empty if nothing is."""


def _states(sample: Mapping[str, float]) -> dict[str, float]:
    return {state: sample[f'tidegate_usage_records_total{{state="{state}"}}'] for state in _STATES}


def _event(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        raise AssertionError(f"a log line that is not JSON: {line!r}") from None
