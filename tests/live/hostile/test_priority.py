"""``priority`` and ``timeout`` are taken from the caller, as far as the key's tier allows (row 45)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest

from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.payload import INFER, Sender, infer_body, message
from tests.live.hostile.second import Second, second_gateway

pytestmark = pytest.mark.live

HIGHEST, LONGEST_S = 3, 1.0


class Recorder(FakeTriton):
    """Remembers the priority of each inference; 0: none was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.priorities: list[int] = []

    def _infer(self, message: Any, context: Any) -> Any:
        self.priorities.append(message.parameters["priority"].uint64_param)
        return super()._infer(message, context)


@pytest.fixture(scope="module")
def triton() -> Iterator[Recorder]:
    server = Recorder()
    yield server
    server.close()


@pytest.fixture(scope="module")
def second(triton: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    with second_gateway(tmp_path_factory.mktemp("priority"), triton.address, metering=False) as running:
        yield running


@pytest.fixture(scope="module")
def with_tier(second: Second) -> Callable[[dict[str, Any]], Sender]:
    """A sender whose key is of a tier with these limits."""
    operator = second.make_key("--organisation", "tidegate", "--scope", "keys:admin")
    names = itertools.count()

    def make(limits: dict[str, Any]) -> Sender:
        name = f"tier{next(names)}"
        with httpx.Client(
            base_url=second.gateway.url, headers={"authorization": f"Bearer {operator}"}, timeout=30.0
        ) as admin:
            set_tier = admin.put(f"/admin/tiers/{name}", json=limits)
            assert set_tier.is_success, set_tier.text
            made = admin.post("/admin/keys", json={"project": "tests", "tier": name})
            assert made.is_success, made.text
        second.gateway.key = made.json()["key"]
        return Sender(second.gateway)

    return make


def priorities(triton: Recorder, send: Sender, asked: int) -> list[int]:
    """What reached Triton for a request over each transport."""
    del triton.priorities[:]
    answer = send.post(INFER, infer_body(parameters={"priority": asked}))
    assert answer.status_code == 200, answer.text
    over_grpc = message()
    over_grpc.parameters["priority"].uint64_param = asked
    assert send.infer(over_grpc).model_name == "identity"
    return list(triton.priorities)


@pytest.mark.parametrize(
    ("limits", "asked", "sent"),
    [
        ({}, 1, 1), ({}, 0, 0), ({"max_priority": HIGHEST}, 1, HIGHEST), ({"max_priority": HIGHEST}, HIGHEST, HIGHEST),
        ({"max_priority": HIGHEST}, 5, 5), ({"max_priority": HIGHEST}, 0, 0), ({"max_priority": 0}, 1, 0),
    ],
)  # fmt: skip
def test_priority_is_no_higher_than_the_tiers(
    triton: Recorder, with_tier: Callable[[dict[str, Any]], Sender], limits: dict[str, Any], asked: int, sent: int
) -> None:
    send = with_tier(limits)
    try:
        assert priorities(triton, send, asked) == [sent, sent]
    finally:
        send.close()


def test_timeout_is_no_longer_than_the_tiers(triton: Recorder, with_tier: Callable[[dict[str, Any]], Sender]) -> None:
    send = with_tier({"max_timeout_s": LONGEST_S})
    triton.mode = "hang"
    try:
        begin = time.monotonic()
        answer = send.post(INFER, infer_body(parameters={"timeout": 60_000_000}))
        assert answer.status_code == 504
        over_grpc = message()
        over_grpc.parameters["timeout"].int64_param = 60_000_000
        assert send.infer(over_grpc).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begin < 20 * LONGEST_S  # and not a minute
    finally:
        triton.mode = "echo"
        send.close()
