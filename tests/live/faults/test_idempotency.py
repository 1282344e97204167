"""Idempotency keys before real Tritons that write down what they execute: once is once, whatever dies."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.gateway.servers import postgresql
from tests.live.faults.conftest import Fleet
from tests.live.faults.servers import ROOT, GatewayProcess

__all__ = ["postgresql"]

pytestmark = pytest.mark.live

NUMBERS = itertools.count(70_000)
INFER = "/v2/models/recorder/infer"


@pytest.fixture
def number() -> int:
    """One that nobody has sent yet; it serves as the key too."""
    return next(NUMBERS)


def body(number: int, pause_ms: float = 0) -> dict[str, Any]:
    return {"inputs": [{"name": "INPUT", "shape": [1, 2], "datatype": "FP64", "data": [number, pause_ms]}]}


def send(gateway: GatewayProcess, key: str | None, content: Any, path: str = INFER, **headers: str) -> httpx.Response:
    named = {} if key is None else {"idempotency-key": key}
    return httpx.post(f"{gateway.url}{path}", headers=gateway.headers | named | headers, json=content, timeout=30)


def rows(gateway: GatewayProcess, key: str) -> list[tuple[str, int]]:
    """State and status of every usage record with ``key``, on SQLite."""
    return gateway.query("SELECT state, status FROM usage_records WHERE idempotency_key = ?", key)


# --- what is promised for every key


def test_a_request_sent_again_is_answered_again_and_not_executed(
    fleet: Fleet, number: int, poll: Callable[..., None]
) -> None:
    first = send(fleet.gateway, f"k{number}", body(number))
    assert first.status_code == 200
    assert "idempotent-replayed" not in first.headers
    for _ in range(3):
        again = send(fleet.gateway, f"k{number}", body(number), **{"accept-encoding": "gzip"})
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["x-tidegate-usage-id"] == first.headers["x-tidegate-usage-id"]
        assert float(again.headers["x-tidegate-cost-usd"]) == 0
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert fleet.executions(number) == 1
    poll(lambda: rows(fleet.gateway, f"k{number}") == [("completed", 200)], 30, "the usage record")


def test_without_a_key_every_request_is_executed(fleet: Fleet, number: int) -> None:
    assert [send(fleet.gateway, None, body(number)).status_code for _ in range(2)] == [200, 200]
    assert fleet.executions(number) == 2


def test_binary_answers_are_given_again_as_they_were(fleet: Fleet, number: int) -> None:
    wanted = body(number) | {"outputs": [{"name": "OUTPUT", "parameters": {"binary_data": True}}]}
    first, again = (send(fleet.gateway, f"k{number}", wanted) for _ in range(2))
    assert again.content == first.content
    assert again.headers["inference-header-content-length"] == first.headers["inference-header-content-length"]
    assert fleet.executions(number) == 1


def test_another_request_under_the_same_key_is_422(fleet: Fleet, number: int) -> None:
    other = next(NUMBERS)
    assert send(fleet.gateway, f"k{number}", body(number)).status_code == 200
    refused = send(fleet.gateway, f"k{number}", body(other))
    assert refused.status_code == 422
    assert "another request" in refused.json()["error"]
    assert send(fleet.gateway, f"k{number}", body(number), "/v2/models/solo/infer").status_code == 422
    assert fleet.executions(other) == 0
    assert fleet.executions(number) == 1


def test_a_duplicate_in_flight_is_409_and_then_the_answer(fleet: Fleet, number: int, poll: Callable[..., None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, fleet.gateway, f"k{number}", body(number, 1500))
        poll(lambda: fleet.executions(number) == 1, 20, "the execution")
        meanwhile = send(fleet.gateway, f"k{number}", body(number, 1500))
        assert meanwhile.status_code == 409
        assert int(meanwhile.headers["retry-after"]) >= 1
        assert first.result().status_code == 200
    again = send(fleet.gateway, f"k{number}", body(number, 1500))
    assert (again.status_code, again.content) == (200, first.result().content)
    assert fleet.executions(number) == 1


def test_of_many_at_once_one_is_executed(fleet: Fleet, number: int, poll: Callable[..., None]) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: send(fleet.gateway, f"k{number}", body(number, 100)), range(32)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sum(answer.status_code == 200 and "idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert fleet.executions(number) == 1
    poll(lambda: rows(fleet.gateway, f"k{number}") == [("completed", 200)], 30, "the usage record")


def test_another_project_has_keys_of_its_own(fleet: Fleet, number: int) -> None:
    other = make_key(fleet.gateway, "other")
    assert send(fleet.gateway, f"k{number}", body(number)).status_code == 200
    theirs = send(fleet.gateway, f"k{number}", body(number), authorization=f"Bearer {other}")
    assert theirs.status_code == 200
    assert "idempotent-replayed" not in theirs.headers
    assert fleet.executions(number) == 2


def make_key(gateway: GatewayProcess, project: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", "keys", "create", "--project", project, "--json"],
        env=gateway.environment, capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


@pytest.mark.parametrize("key", ["", "k" * 256, "k\xe4"])
def test_keys_that_are_none_are_400(fleet: Fleet, number: int, key: str) -> None:
    headers = [(b"authorization", f"Bearer {fleet.gateway.key}".encode()), (b"idempotency-key", key.encode("latin-1"))]
    answer = httpx.post(f"{fleet.gateway.url}{INFER}", headers=headers, json=body(number), timeout=30)
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]
    assert fleet.executions(number) == 0


def test_a_key_of_255_characters_is_one(fleet: Fleet, number: int) -> None:
    assert send(fleet.gateway, str(number) + "k" * 250, body(number)).status_code == 200


def test_two_keys_in_one_request_are_400(fleet: Fleet, number: int) -> None:
    headers = [*fleet.gateway.headers.items(), ("idempotency-key", "a"), ("idempotency-key", "b")]
    assert httpx.post(f"{fleet.gateway.url}{INFER}", headers=headers, json=body(number)).status_code == 400
    assert fleet.executions(number) == 0


def test_a_stream_takes_no_key(fleet: Fleet, number: int) -> None:
    path = "/v2/models/recorder/generate_stream"
    answer = send(fleet.gateway, f"k{number}", {"INPUT": [number, 0]}, path)
    assert answer.status_code == 400
    assert "stream" in answer.json()["error"]
    assert fleet.executions(number) == 0


def test_reading_takes_no_notice_of_a_key(fleet: Fleet) -> None:
    url = f"{fleet.gateway.url}/v2/models/recorder"
    assert httpx.get(url, headers=fleet.gateway.headers | {"idempotency-key": ""}).status_code == 200


def test_a_refused_request_gives_its_key_back(fleet: Fleet, number: int) -> None:
    assert send(fleet.gateway, f"k{number}", {"inputs": []}).status_code == 422
    assert send(fleet.gateway, f"k{number}", body(number)).status_code == 200


def test_a_failed_request_gives_its_key_back_and_is_not_billed(fleet: Fleet, poll: Callable[..., None]) -> None:
    number = -next(NUMBERS)
    statuses = [send(fleet.gateway, f"k{number}", body(number)).status_code for _ in range(2)]
    assert statuses == [502, 502]
    assert fleet.executions(number) == 2
    poll(lambda: rows(fleet.gateway, f"k{number}") == [("failed", 502)] * 2, 30, "both usage records")


def test_a_client_that_went_away_may_come_back(fleet: Fleet, number: int, poll: Callable[..., None]) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{fleet.gateway.url}{INFER}", json=body(number, 1500), timeout=0.4,
            headers=fleet.gateway.headers | {"idempotency-key": f"k{number}"},
        )  # fmt: skip
    poll(lambda: rows(fleet.gateway, f"k{number}") == [("client_closed", 499)], 30, "the usage record")
    assert send(fleet.gateway, f"k{number}", body(number, 1500)).status_code == 200


# --- gRPC


def test_grpc_answers_again_too(fleet: Fleet, number: int) -> None:
    tensor = grpcclient.InferInput("INPUT", [1, 2], "FP64")
    tensor.set_data_from_numpy(np.array([[number, 0]], dtype=np.float64))
    headers = fleet.gateway.headers | {"idempotency-key": f"k{number}"}
    with grpcclient.InferenceServerClient(fleet.gateway.grpc_address) as client:
        for _ in range(3):
            result = client.infer("recorder", [tensor], headers=headers, request_id="r")
            assert result.as_numpy("OUTPUT").item() == 3 * number + 1
            assert result.get_response().id == "r"
        assert fleet.executions(number) == 1
        tensor.set_data_from_numpy(np.array([[number + 0.5, 0]], dtype=np.float64))
        with pytest.raises(InferenceServerException, match="another request"):
            client.infer("recorder", [tensor], headers=headers, request_id="r")
        with pytest.raises(InferenceServerException, match="1 to 255"):
            client.infer("recorder", [tensor], headers=headers | {"idempotency-key": "k" * 256})
        answers: list[Any] = []
        client.start_stream(lambda result, error: answers.append(error), headers=headers)
        client.async_stream_infer("recorder", [tensor])
        client.stop_stream()
    assert "stream" in str(answers[0])
    assert fleet.executions(number) == 1


# --- Triton breaks


@pytest.mark.parametrize("key", [True, False], ids=["with a key", "without"])
def test_a_broken_connection_is_tried_on_another_triton_for_a_key_only(
    fleet: Fleet, number: int, key: bool, poll: Callable[..., None]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, fleet.gateway, f"k{number}" if key else None, body(number, 1000))
        poll(lambda: fleet.executions(number) == 1, 20, "the execution")
        (at,) = [index for index, triton in enumerate(fleet.tritons) if triton.executed()[number]]
        fleet.roads[at].reset()
        assert answer.result().status_code == (200 if key else 502)
    assert fleet.executions(number) == (2 if key else 1)
    assert fleet.tritons[1 - at].executed()[number] == (1 if key else 0)


# --- gateways die, and share a database


class Gateways:
    """Makes gateways on one database, before the fleet's first Triton."""

    def __init__(self, fleet: Fleet, folder: Path, url: str | None, poll: Callable[..., None]) -> None:
        self._fleet, self._folder, self._poll = fleet, folder, poll
        self._settings = {"pepper_file": str(folder / "pepper"), "audit_key_file": str(folder / "audit.key")}
        if url is not None:
            self._settings["database_url"] = url
        self.all: list[GatewayProcess] = []

    def start(self) -> GatewayProcess:
        folder = self._folder / f"gateway{len(self.all)}"
        folder.mkdir()
        gateway = GatewayProcess(
            folder, self._fleet.repository, self._fleet.roads[0].address, self._poll, **self._settings
        )
        if self.all:
            gateway.key = self.all[0].key
        else:
            gateway.bootstrap()
        self.all.append(gateway)
        gateway.start()
        self.wait(gateway)
        return gateway

    def wait(self, gateway: GatewayProcess) -> None:
        ready = f"{gateway.url}/healthz/ready"
        self._poll(lambda: httpx.get(ready, timeout=10).status_code == 200, 30, "readiness")


@pytest.fixture
def gateways(
    request: pytest.FixtureRequest, fleet: Fleet, tmp_path: Path, poll: Callable[..., None]
) -> Iterator[Gateways]:
    url = request.getfixturevalue("postgresql").create_database() if request.param == "postgresql" else None
    made = Gateways(fleet, tmp_path, url, poll)
    yield made
    for gateway in made.all:
        if gateway.process.poll() is None:
            gateway.stop()


@pytest.mark.parametrize("gateways", ["sqlite"], indirect=True)
def test_a_killed_gateway_leaves_a_key_that_is_never_executed_again(
    fleet: Fleet, gateways: Gateways, number: int, poll: Callable[..., None]
) -> None:
    gateway = gateways.start()
    kept = next(NUMBERS)
    before = send(gateway, f"k{kept}", body(kept))
    with ThreadPoolExecutor(1) as pool:
        cut_off = pool.submit(send, gateway, f"k{number}", body(number, 2000))
        poll(lambda: fleet.executions(number) == 1, 20, "the execution")
        gateway.process.kill()
        gateway.process.wait()
        assert isinstance(cut_off.exception(), httpx.TransportError)
    gateway.start()
    gateways.wait(gateway)
    answers: list[httpx.Response] = []

    def lost() -> bool:
        """In progress as far as anybody knows, until the dead gateway's journal says otherwise."""
        answers.append(send(gateway, f"k{number}", body(number, 2000)))
        return "may have been executed" in answers[-1].json()["error"]

    poll(lost, 60, "the end of the dead gateway's call")
    assert {answer.status_code for answer in answers} == {409}
    assert answers[-1].headers["x-should-retry"] == "false"
    assert send(gateway, f"k{number}", body(number, 2000)).status_code == 409
    assert send(gateway, f"k{number}", body(number)).status_code == 422
    assert fleet.executions(number) == 1
    again = send(gateway, f"k{kept}", body(kept))  # what was answered before the kill is answered still
    assert (again.status_code, again.content) == (200, before.content)
    assert fleet.executions(kept) == 1
    assert send(gateway, f"new{number}", body(number)).status_code == 200


@pytest.mark.database
@pytest.mark.parametrize("gateways", ["postgresql"], indirect=True)
def test_keys_hold_across_gateways(fleet: Fleet, gateways: Gateways, number: int, poll: Callable[..., None]) -> None:
    one, two = gateways.start(), gateways.start()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, one, f"k{number}", body(number, 1500))
        poll(lambda: fleet.executions(number) == 1, 20, "the execution")
        assert send(two, f"k{number}", body(number, 1500)).status_code == 409
        assert send(two, f"k{number}", body(number)).status_code == 422
        assert first.result().status_code == 200
        cut = next(NUMBERS)
        lost = pool.submit(send, one, f"k{cut}", body(cut, 1500))
        poll(lambda: fleet.executions(cut) == 1, 20, "the execution")
        one.process.kill()
        one.process.wait()
        assert isinstance(lost.exception(), httpx.TransportError)
    assert send(two, f"k{cut}", body(cut, 1500)).status_code == 409
    assert fleet.executions(cut) == 1
    again = send(two, f"k{number}", body(number, 1500))
    assert (again.status_code, again.content) == (200, first.result().content)
    assert again.headers["idempotent-replayed"] == "true"
    assert fleet.executions(number) == 1
