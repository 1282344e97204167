"""Slow, idle and many clients (cases 25 and 28) on gateways of their own with small bounds.

They stand in front of a Triton of their own too: the shared stack's gateway would find the inferences that others
run on its Triton in its books.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD, Invariants
from tests.live.hostile.memory import peak
from tests.live.hostile.second import Second, second_gateway
from tests.live.hostile.wire import Connection, request, talk

ESTABLISHED = 1
"""Of TCP_INFO's states."""

pytestmark = pytest.mark.live

INFER = "/v2/models/identity/infer"
HEADER_S, BODY_S, CONNECTIONS, BUFFERED = 1.0, 1.5, 48, 2**21


@pytest.fixture(scope="module")
def small(served_fake: tuple[FakeTriton, Second], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    settings = {
        "header_timeout_s": HEADER_S, "body_timeout_s": BODY_S, "max_connections": CONNECTIONS,
        "max_buffered_bytes": BUFFERED,
    }  # fmt: skip
    with second_gateway(tmp_path_factory.mktemp("small"), served_fake[0].address, **settings) as second:
        yield second


@pytest.fixture
def watched(small: Second) -> Invariants:
    return small.invariants


def test_25_headers_byte_by_byte_are_408(watched: Invariants) -> None:
    with watched.case() as case, Connection(watched.gateway.url) as connection:
        begun = time.monotonic()
        for byte in request("GET", "/v1/models", {"x-slow": "a" * 200}):
            connection.send(bytes([byte]))
            if time.monotonic() - begun > HEADER_S + 1:
                break
            time.sleep(0.05)
        case.refused(connection.read(), 408, "openai")
        assert connection.is_closed()


def test_25_a_connection_that_says_nothing_is_closed(watched: Invariants) -> None:
    with watched.case() as case, Connection(watched.gateway.url) as connection:
        case.refused(connection.read(), 408, "plain")
        assert connection.is_closed()


def test_25_slow_bodies_are_408(watched: Invariants) -> None:
    headers = watched.gateway.headers | {"content-length": "1000", "connection": ""}
    with watched.case() as case, Connection(watched.gateway.url) as connection:
        connection.send(request("POST", INFER, headers))
        begun = time.monotonic()
        while time.monotonic() - begun < BODY_S - 0.3:
            connection.send(b" ")
            time.sleep(0.1)
        case.refused(connection.read(), 408, "oip")
        assert connection.is_closed()


def test_25_a_client_that_does_not_read_is_cut_off(watched: Invariants, poll: Callable[..., None]) -> None:
    """An answer that nobody takes must not stay in memory for as long as its client likes."""
    rows = {"inputs": [{"name": "INPUT", "shape": [64, 64], "datatype": "FP32", "data": [0.123456789] * 64 * 64}]}
    one = request("POST", INFER, watched.gateway.headers | {"connection": ""}, json.dumps(rows).encode())
    before, log_size = watched.metrics(), watched.gateway.log_file.stat().st_size
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(Connection.address(watched.gateway.url))
        stuck.settimeout(1.0)
        with contextlib.suppress(OSError):  # the gateway does not read on either, after a while
            for _ in range(400):
                stuck.sendall(one)
        poll(lambda: stuck.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED, 60, "its end")
    after = watched.metrics()
    assert after["tidegate_ledger_inflight"] == 0
    assert after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"] < 32 * 2**20
    assert not watched.log_since(log_size)
    watched.check_alive()


def test_25_a_stream_that_nobody_reads_is_held_back_and_cut_off(fake: FakeTriton, small: Second) -> None:
    """The model goes on as fast as it can: what its client does not take is not made, and at last it is cancelled."""
    fake.pause_s = 0.0
    body = json.dumps({"INPUT": [0.123456789] * 64}).encode()
    one = request("POST", "/v2/models/stream/generate_stream", small.gateway.headers | {"connection": ""}, body)
    with (
        small.invariants.case(usage={"client_closed": 1}, growth_mib=24),
        peak(small.process.pid) as seen,
        socket.socket() as stuck,
    ):
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(Connection.address(small.gateway.url))
        stuck.sendall(one)
        assert fake.cancelled.acquire(timeout=30)
    assert seen.growth < 64, f"{seen.growth:.0f} MiB"


def test_many_large_bodies_at_once_do_not_take_all_memory(watched: Invariants) -> None:
    head = request("POST", INFER, watched.gateway.headers | {"content-length": str(BUFFERED - 1), "connection": ""})
    whole = request("POST", INFER, watched.gateway.headers, json.dumps(GOOD).encode().ljust(BUFFERED // 2))
    with watched.case(usage={"completed": 1}) as case, ExitStack() as opened:
        many = [opened.enter_context(Connection(watched.gateway.url)) for _ in range(6)]
        for connection in many:
            connection.send(head, b" " * (BUFFERED // 2))  # and the rest never comes
        statuses = [answer.status_code for connection in many if (answer := connection.read()) is not None]
        assert sorted(set(statuses)) == [408, 503]  # those that fit until they were late, and those that did not
        opened.close()
        (answer,) = talk(watched.gateway.url, whole)
        assert case.see(answer).status_code == 200


def slow_clients(count: int, gateway_url: str, stop: threading.Event, every_s: float = 0.2) -> threading.Thread:
    """``count`` clients that send a byte of their headers now and then, and come back when they are cut off."""

    def run() -> None:
        connections: list[Connection] = []
        while not stop.is_set():
            while len(connections) < count:
                connections.append(Connection(gateway_url))
                connections[-1].send(b"GET /v2 HTTP/1.1\r\nX-Slow: ")
            for connection in [*connections]:
                try:
                    connection.socket.sendall(b"a")
                except OSError:
                    connection.close()
                    connections.remove(connection)
            stop.wait(every_s)
        for connection in connections:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def goodput(client: httpx.Client, seconds: float = 0.5) -> int:
    """Good inferences in ``seconds``, one after the other."""
    done, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert client.post(INFER, json=GOOD).status_code == 200
        done += 1
    return done


def test_25_slow_clients_do_not_slow_a_good_one(watched: Invariants) -> None:
    """The best of interleaved rounds; the slack is for a machine that others use too."""
    alone, among = [], []
    with httpx.Client(base_url=watched.gateway.url, headers=watched.gateway.headers, timeout=30.0) as client:
        goodput(client)
        for _ in range(3):
            alone.append(goodput(client))
            stop = threading.Event()
            thread = slow_clients(CONNECTIONS - 12, watched.gateway.url, stop)
            try:
                among.append(goodput(client))
            finally:
                stop.set()
                thread.join()
    assert max(with_them / without for without, with_them in zip(alone, among, strict=True)) >= 0.6, (alone, among)
    watched.check_alive()


def test_25_slow_clients_cost_next_to_nothing(invariants: Invariants) -> None:
    """What 500 clients take that send a byte of their headers every second, and come back when they are cut off:
    less than 5 % of the one processor that limits what good clients get.
    """
    slow, seconds = 500, 6.0
    stop = threading.Event()

    def spent(during_s: float) -> float:
        before = invariants.metrics()["process_cpu_seconds_total"]
        time.sleep(during_s)
        return (invariants.metrics()["process_cpu_seconds_total"] - before) / during_s

    with invariants.case(growth_mib=64):
        idle = min(spent(2.0), spent(2.0))
        thread = slow_clients(slow, invariants.gateway.url, stop, every_s=1.0)
        try:
            time.sleep(2.0)  # they are all there
            busy = spent(seconds)
        finally:
            stop.set()
            thread.join()
    print(f"\n{busy - idle:.1%} of a processor for {slow} slow clients")
    assert busy - idle < 0.05


def test_28_idle_connections_over_the_cap_are_refused(watched: Invariants, poll: Callable[..., None]) -> None:
    url = watched.gateway.url
    with httpx.Client(base_url=url, headers=watched.gateway.headers, timeout=30.0) as kept, ExitStack() as stack:
        assert kept.post(INFER, json=GOOD).status_code == 200
        idle = [stack.enter_context(Connection(url)) for _ in range(200)]
        answers = [idle[index].read() for index in range(CONNECTIONS, 200)]
        for answer in answers:
            assert answer is not None
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-request-id"]
        # Who is inside goes on, and the health port answers.
        assert kept.post(INFER, json=GOOD).status_code == 200
        health = watched.gateway.metrics_url.removesuffix("/metrics")
        assert httpx.get(f"{health}/healthz/live").status_code == 200
        assert httpx.get(f"{health}/healthz/ready").status_code == 200
    poll(lambda: _answers(url), 20, "room for new connections")
    with watched.case():
        pass


def test_28_idle_connections_give_their_place_back_in_time(watched: Invariants, poll: Callable[..., None]) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS + 20):
            stack.enter_context(Connection(watched.gateway.url))
        poll(lambda: _answers(watched.gateway.url), HEADER_S + 20, "room while they are still there")
    with watched.case():
        pass


def test_28_ten_thousand_idle_connections(invariants: Invariants, poll: Callable[..., None]) -> None:
    """The gateway's default cap is 4096, on the running stack: those over it are refused, those inside go on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 11_000:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 11_000), hard))
    url, health = invariants.gateway.url, invariants.gateway.metrics_url.removesuffix("/metrics")
    with invariants.case(usage={"completed": 2}, growth_mib=256) as case, ExitStack() as opened:
        opened.callback(poll, lambda: _answers(url), 30, "room for new connections")
        kept = opened.enter_context(httpx.Client(base_url=url, headers=invariants.gateway.headers, timeout=30.0))
        assert kept.post(INFER, json=GOOD).status_code == 200
        idle = [opened.enter_context(Connection(url)) for _ in range(10_000)]
        for connection in idle[5_000::500]:
            case.refused(connection.read(), 503, "plain")
        assert kept.post(INFER, json=GOOD).status_code == 200
        assert httpx.get(f"{health}/healthz/live").status_code == 200
        assert httpx.get(f"{health}/healthz/ready").status_code == 200


def test_few_open_files_mean_fewer_connections(fake: FakeTriton, tmp_path: Path, poll: Callable[..., None]) -> None:
    """The system's limit below the gateway's own: it keeps files for itself, and refuses as at its own limit."""
    settings = {"header_timeout_s": 30, "max_connections": 4096}
    with second_gateway(tmp_path / "data", fake.address, files=200, **settings) as second:
        assert "gateway.few_files" in second.gateway.log_file.read_text()
        with second.invariants.case(usage={"completed": 1}) as case, ExitStack() as many:
            many.callback(poll, lambda: _answers(second.gateway.url), 20, "room for new connections")
            kept = many.enter_context(
                httpx.Client(base_url=second.gateway.url, headers=second.gateway.headers, timeout=30.0)
            )
            idle = [many.enter_context(Connection(second.gateway.url)) for _ in range(150)]
            case.refused(idle[-1].read(), 503, "plain")
            for connection in idle:
                connection.close()
            poll(lambda: _answers(second.gateway.url), 20, "room for new connections")
            assert kept.post(INFER, json=GOOD).status_code == 200


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz/live", timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False
