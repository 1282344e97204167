"""Faults of upstream that the real Triton cannot be made to show on command (HOSTILE.md, section 2: rows 4, 14, 15
and 17, damaged answers, and a name that does not resolve): what its callers see, and how often it is asked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.live.hostile.conftest import WAYS
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD
from tests.live.hostile.payload import INFER, Sender, message, sender
from tests.live.hostile.second import Second, second_gateway

pytestmark = pytest.mark.live
both_ways = pytest.mark.parametrize("way", WAYS, indirect=True)

S = grpc.StatusCode
TIMEOUT_S = 0.4


@pytest.fixture
def send(second: Second) -> Iterator[Sender]:
    with sender(second.gateway) as opened:
        yield opened


@both_ways
def test_4_a_deadline_is_kept_to_the_moment_and_cancels_upstream(
    fake: FakeTriton, second: Second, send: Sender
) -> None:
    """504 at the deadline; the nearest of ten is within 50 ms of it, none is a deadline late."""
    fake.mode = "hang"
    elapsed = []
    with second.invariants.case(usage={"failed": 10}) as case:
        for _ in range(5):
            begin = time.monotonic()
            answer = send.post(INFER, GOOD | {"parameters": {"timeout": int(TIMEOUT_S * 1e6)}})
            elapsed.append(time.monotonic() - begin)
            case.refused(answer, 504, "oip")
            assert fake.cancelled.acquire(timeout=5)
            late = message()
            late.parameters["timeout"].int64_param = int(TIMEOUT_S * 1e6)
            begin = time.monotonic()
            case.grpc_refused(send.infer(late), S.DEADLINE_EXCEEDED)
            elapsed.append(time.monotonic() - begin)
            assert fake.cancelled.acquire(timeout=5)
        fake.mode = "echo"
    errors = sorted(abs(seconds - TIMEOUT_S) for seconds in elapsed)
    assert min(elapsed) > TIMEOUT_S - 0.05, elapsed
    assert errors[len(errors) // 4] <= 0.05, elapsed
    assert errors[-1] <= TIMEOUT_S, elapsed
    assert second.invariants.metrics()['tidegate_inflight{model="identity"}'] == 0


REFUSALS = {
    "queue full": (S.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size"),
    "queue timeout": (S.UNAVAILABLE, "[request id: <id_unknown>] Request timeout expired"),
    "no memory": (S.INTERNAL, "onnx runtime error 6: CUDA failure 2: out of memory ; GPU=0 ; hostname=node-7"),
    "no memory in torch": (S.INTERNAL, "PyTorch execute failure: CUDA out of memory. Tried to allocate 2.00 GiB"),
    "no memory in the arena": (S.INTERNAL, "onnx runtime error 1: Failed to allocate memory for requested buffer"),
    "a broken device": (S.INTERNAL, "CUDA error: an illegal memory access was encountered at /opt/tritonserver/x.cc:1"),
}


@both_ways
@pytest.mark.parametrize(("code", "text"), REFUSALS.values(), ids=REFUSALS.keys())
def test_14_15_what_upstream_cannot_serve_now_is_503_once(
    fake: FakeTriton, second: Second, send: Sender, code: grpc.StatusCode, text: str
) -> None:
    """A full queue, a queue that took too long, a device without memory: come again later. Nothing is repeated."""
    fake.failure = (code, text)
    before = fake.asked["ModelInfer"]
    with second.invariants.case(usage={"failed": 2}) as case:
        fake.mode = "fail"
        answer = case.refused(send.post(INFER, GOOD), 503, "oip")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        failed = send.infer(message())
        case.grpc_refused(failed, S.UNAVAILABLE)
        assert int(dict(failed.trailing_metadata())["retry-after"]) >= 1
        assert fake.asked["ModelInfer"] == before + 2
        fake.mode = "echo"
        for secret in ("GPU", "node-7", "CUDA", "/opt", "queue size", "allocate"):
            assert secret not in answer.text


@pytest.fixture
def pair(way: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[FakeTriton], Second]]:
    """Two servers, and a gateway that looks at them seldom."""
    servers = [FakeTriton(), FakeTriton()]
    targets = ",".join(server.target if way == "http" else server.address for server in servers)
    try:
        with second_gateway(tmp_path_factory.mktemp("pair"), targets, triton_health_interval_s=2) as running:
            yield servers, running
    finally:
        for server in servers:
            server.close()


@both_ways
def test_15_a_server_whose_device_is_broken_is_given_nothing_more(pair: tuple[list[FakeTriton], Second]) -> None:
    """The circuit opens after three failures: 503 for those, once each, and the other server does the rest; when
    it has rested, one request looks whether it is well.
    """
    (broken, well), second = pair
    broken.failure = REFUSALS["a broken device"]
    broken.mode = "fail"
    usage: dict[str, int] = {}
    with second.invariants.case(usage=usage, log_allows=("triton.ejected",)) as case, sender(second.gateway) as send:
        statuses = [case.see(send.post(INFER, GOOD)).status_code for _ in range(60)]
        usage.update(failed=statuses.count(503), completed=statuses.count(200))
        assert sum(usage.values()) == 60
        assert 3 <= usage["failed"] <= 6
        assert broken.asked["ModelInfer"] == usage["failed"]
        assert well.asked["ModelInfer"] == usage["completed"]
        broken.mode = "echo"


@pytest.mark.parametrize(
    ("way", "text"),
    [(way, "Request for unknown model: 'identity' is not ready") for way in WAYS]
    + [("grpc", "failed to connect to x")],
    indirect=["way"],
)
def test_17_clients_that_retry_at_once_make_no_storm_upstream(pair: tuple[list[FakeTriton], Second], text: str) -> None:
    """Both servers refuse everything, and every client asks three times more without a pause: upstream is asked
    at most 1.1 times for each request of a client, and ten at once.
    """
    servers, second = pair
    sent, lock = Counter[int](), threading.Lock()
    for server in servers:
        server.failure = (S.UNAVAILABLE, text)
        server.mode = "fail"

    def impatient() -> None:
        with httpx.Client(base_url=second.gateway.url, headers=second.gateway.headers, timeout=30) as client:
            for _ in range(15):
                for _ in range(1 + 3):
                    status = client.post(INFER, json=GOOD).status_code
                    with lock:
                        sent[status] += 1
                    if status == 200:
                        break

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(impatient) for _ in range(8)]:
            future.result()
    upstream = sum(server.asked["ModelInfer"] for server in servers)
    assert set(sent) == {503}
    assert sent.total() == 8 * 15 * 4
    assert upstream <= 1.1 * sent.total() + 10
    for server in servers:
        server.mode = "echo"
    _wait_ready(second)
    second.invariants.check_alive()


@both_ways
def test_17_with_one_server_left_retries_reach_it(pair: tuple[list[FakeTriton], Second]) -> None:
    """What one server refused is asked of the other, and answered: nobody needs to come again."""
    (refusing, well), second = pair
    refusing.failure, refusing.mode = (S.UNAVAILABLE, "'identity' is not ready"), "fail"
    with second.invariants.case(usage={"completed": 40}) as case, sender(second.gateway) as send:
        for _ in range(40):
            assert case.see(send.post(INFER, GOOD)).status_code == 200
        assert well.asked["ModelInfer"] == 40
        assert refusing.asked["ModelInfer"] <= 0.1 * 40 + 10
        refusing.mode = "echo"


# --- answers that are none

Damage = Callable[[Any], Any]


def _of_data(data: bytes) -> Damage:
    def damage(reply: Any) -> None:
        reply.raw_output_contents[0] = data

    return damage


def _of_output(**changes: Any) -> Damage:
    def damage(reply: Any) -> None:
        for name, value in changes.items():
            if name == "shape":
                reply.outputs[0].shape[:] = value
            else:
                setattr(reply.outputs[0], name, value)

    return damage


def _both(*damages: Damage) -> Damage:
    def damage(reply: Any) -> None:
        for each in damages:
            each(reply)

    return damage


def _of_another(reply: Any) -> None:
    reply.model_name = "another"


def _twice(reply: Any) -> None:
    reply.outputs.add().CopyFrom(reply.outputs[0])
    reply.raw_output_contents.append(reply.raw_output_contents[0])


def _without_data(reply: Any) -> None:
    del reply.raw_output_contents[:]


def _without_outputs(reply: Any) -> None:
    del reply.outputs[:], reply.raw_output_contents[:]


NUMBERS_DAMAGED: dict[str, Damage] = {
    "too few bytes": _of_data(bytes(12)),
    "too many bytes": _of_data(bytes(260)),
    "no bytes": _of_data(b""),
    "an unknown datatype": _of_output(datatype="FLOAT"),
    "another datatype": _of_output(datatype="INT32"),
    "another shape": _of_output(shape=[64, 1]),
    "another rank": _of_output(shape=[64]),
    "no shape": _both(_of_output(shape=[]), _of_data(bytes(4))),
    "two negative dimensions": _of_output(shape=[-1, -64]),
    "more rows": _both(_of_output(shape=[2, 64]), _of_data(bytes(512))),
    "no rows": _both(_of_output(shape=[0, 64]), _of_data(b"")),
    "an unknown output": _of_output(name="SECRET"),
    "an output twice": _twice,
    "outputs without data": _without_data,
    "another model": _of_another,
    "no protocol": lambda _reply: b"\xff\x00 nothing of the kind \xff" * 3,
}
TEXTS_DAMAGED: dict[str, Damage] = {
    "a length beyond the end": _of_data(b"\xff\xff\xff\x7fabc"),
    "half a length": _of_data(b"\x01\x00"),
    "too many elements": _of_data(b"\x01\x00\x00\x00a" * 2),
    "too few elements": _of_data(b""),
    "bytes behind the last": _of_data(b"\x01\x00\x00\x00a!"),
}
TEXT = {"inputs": [{"name": "INPUT", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]}


@both_ways
@pytest.mark.parametrize("damage", NUMBERS_DAMAGED.values(), ids=NUMBERS_DAMAGED.keys())
def test_60_a_damaged_answer_is_502(fake: FakeTriton, second: Second, send: Sender, damage: Damage) -> None:
    """In each form that an answer can take: JSON, binary, classified, generated, over gRPC; asked once each."""
    binary = {"outputs": [{"name": "OUTPUT", "parameters": {"binary_data": True}}]}
    classes = {"outputs": [{"name": "OUTPUT", "parameters": {"classification": 2}}]}
    plain = {"INPUT": [0.5] * 64}
    before = fake.asked["ModelInfer"]
    with second.invariants.case(usage={"failed": 6}) as case:
        fake.damage, fake.mode = damage, "garbage"
        for body in (GOOD, GOOD | binary, GOOD | classes):
            case.refused(send.post(INFER, body), 502, "oip")
        for method in ("generate", "generate_stream"):
            case.refused(send.post(f"/v2/models/identity/{method}", plain), 502, "oip")
        case.grpc_refused(send.infer(message()), S.UNAVAILABLE)
        assert fake.asked["ModelInfer"] == before + 6
        fake.mode = "echo"


@both_ways
@pytest.mark.parametrize("damage", TEXTS_DAMAGED.values(), ids=TEXTS_DAMAGED.keys())
def test_60_damaged_texts_are_502(fake: FakeTriton, second: Second, send: Sender, damage: Damage) -> None:
    binary = {"outputs": [{"name": "OUTPUT", "parameters": {"binary_data": True}}]}
    asked = pb.ModelInferRequest(model_name="texts")
    asked.inputs.add(name="INPUT", datatype="BYTES", shape=[1, 1])
    asked.raw_input_contents.append(b"\x01\x00\x00\x00a")
    with second.invariants.case(usage={"completed": 1, "failed": 5}) as case:
        assert send.post("/v2/models/texts/infer", TEXT).json()["outputs"][0]["data"] == ["a"]
        fake.damage, fake.mode = damage, "garbage"
        for body in (TEXT, TEXT | binary):
            case.refused(send.post("/v2/models/texts/infer", body), 502, "oip")
        for method in ("generate", "generate_stream"):
            case.refused(send.post(f"/v2/models/texts/{method}", {"INPUT": "a"}), 502, "oip")
        case.grpc_refused(send.infer(asked), S.UNAVAILABLE)
        fake.mode = "echo"


def test_60_an_output_that_was_asked_for_and_is_not_there_is_502(
    fake: FakeTriton, second: Second, send: Sender
) -> None:
    with second.invariants.case(usage={"failed": 1}) as case:
        fake.damage, fake.mode = _without_outputs, "garbage"
        case.refused(send.post(INFER, GOOD | {"outputs": [{"name": "OUTPUT"}]}), 502, "oip")
        fake.mode = "echo"


@both_ways
@pytest.mark.parametrize("damage", [*NUMBERS_DAMAGED][:3])
def test_60_a_damaged_batch_spoils_all_of_it_and_is_never_cut_apart(
    fake: FakeTriton, second: Second, damage: str
) -> None:
    """Requests that gather while others are on their way travel together; what comes back too short is nobody's."""
    usage: dict[str, int] = {}
    fake.damage, fake.mode = NUMBERS_DAMAGED[damage], "garbage"
    with second.invariants.case(usage=usage) as case, sender(second.gateway) as send, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: send.post(INFER, GOOD), range(96)))
        for answer in answers:
            case.refused(answer, 502, "oip")
        usage.update(failed=96)
        fake.mode = "echo"


@pytest.mark.parametrize(
    ("model", "damage"),
    [("stream", damage) for damage in ("too few bytes", "an unknown datatype", "outputs without data", "no protocol")]
    + [("text-stream", damage) for damage in ("a length beyond the end", "too few elements")]
    + [("stream", None)],
)
def test_60_a_stream_that_breaks_or_ends_early_is_no_whole_answer(
    fake: FakeTriton, second: Second, send: Sender, model: str, damage: str | None
) -> None:
    """One good part, and then a damaged one, or an end without the last one: an error, and recorded as failed."""
    known = NUMBERS_DAMAGED | TEXTS_DAMAGED
    plain: dict[str, Any] = {"INPUT": "a" if "text" in model else [0.5] * 64}
    asked = message()
    asked.model_name = model
    if "text" in model:
        asked.inputs[0].datatype, asked.inputs[0].shape[:] = "BYTES", [1, 1]
        asked.raw_input_contents[0] = b"\x01\x00\x00\x00a"
    cut = ("ASGI callable returned without completing response.",)
    with second.invariants.case(usage={"failed": 3}, log_allows=cut) as case:
        fake.damage = known[damage] if damage else lambda _reply: None
        fake.mode = "garbage"
        with send.http.stream("POST", f"/v2/models/{model}/generate_stream", json=plain) as answer:
            lines = []
            with pytest.raises(httpx.RemoteProtocolError):  # cut off: never a whole answer
                lines.extend(answer.iter_lines())
        events = [line for line in lines if line]
        assert answer.status_code == 200
        assert "error" in events[-1]
        assert len(events) == (2 if damage else 3)
        fake.parts = 1
        case.refused(send.post(f"/v2/models/{model}/generate", plain), 502, "oip")
        fake.parts = 0
        replies = send.stream(asked)
        assert [bool(reply.error_message) for reply in replies] == [False] * (len(events) - 1) + [True]
        fake.mode = "echo"


def test_a_name_that_does_not_resolve_is_a_server_that_is_not_there(
    fake: FakeTriton, tmp_path_factory: pytest.TempPathFactory, poll: Callable[..., None]
) -> None:
    """Beside a good server nobody notices; alone, the gateway lives, is not ready, and says 503 without the name."""
    nowhere = "triton.invalid:8001/8000"
    with (
        second_gateway(tmp_path_factory.mktemp("names"), f"{nowhere},{fake.address}") as second,
        second.invariants.case(usage={"completed": 20}) as case,
        sender(second.gateway) as send,
    ):
        for _ in range(20):
            assert case.see(send.post(INFER, GOOD)).status_code == 200
    alone = second_gateway(tmp_path_factory.mktemp("nobody"), nowhere, ready=False)
    with alone as second, sender(second.gateway) as send:
        assert send.http.get("/healthz/live").status_code == 200
        ready = send.http.get("/healthz/ready")
        assert ready.status_code == 503
        answer = send.post(INFER, GOOD)
        assert answer.status_code in {404, 503}
        for text in (ready.text, answer.text, str(answer.headers)):
            assert "triton.invalid" not in text


def _wait_ready(second: Second) -> None:
    deadline = time.monotonic() + 20
    while httpx.get(f"{second.gateway.url}/healthz/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
