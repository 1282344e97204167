"""The database and the disk fail under a gateway: what stays open, what closes, what is lost (nothing)."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded.launcher import EmbeddedTriton
from gateway.access import keyformat
from tests.live.cluster.conftest import BODY, INFER, Cluster
from tests.live.faults.servers import ROOT, GatewayProcess

pytestmark = [pytest.mark.live, pytest.mark.database, pytest.mark.slow]

Make = Callable[..., GatewayProcess]
ROUTES = (
    ("POST", INFER), ("POST", "/hf/models/identity"), ("POST", "/v1/embeddings"), ("GET", "/v1/models"),
    ("GET", "/v2/models/identity"), ("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/usage"),
)  # fmt: skip


def status(gateway: GatewayProcess, path: str) -> int:
    return httpx.get(gateway.url + path, timeout=20).status_code


def infer(gateway: GatewayProcess, **headers: str) -> httpx.Response:
    return httpx.post(gateway.url + INFER, json=BODY, headers=gateway.headers | headers, timeout=20)


def metric(gateway: GatewayProcess, name: str) -> float:
    """A sample of its exposition, by name and labels as they stand there."""
    text = httpx.get(gateway.metrics_url, timeout=20).text
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


def fill(ballast: Path) -> None:
    """Take all the room there is on the disk of ``ballast``."""
    for mode, size in (("wb", 65536), ("ab", 512)):
        with ballast.open(mode, buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(size))


@pytest.fixture
def make(spare_triton: EmbeddedTriton, tmp_path: Path, poll: Callable[..., None]) -> Iterator[Make]:
    """Gateways of the test's own before the spare Triton; not started."""
    made: list[GatewayProcess] = []

    def one(folder: Path | None = None, **settings: str) -> GatewayProcess:
        own = folder or tmp_path / f"gateway{len(made)}"
        own.mkdir(exist_ok=True)
        settings = {"triton_urls": spare_triton.grpc_url} | settings
        tritons = settings.pop("triton_urls")
        made.append(GatewayProcess(own, ROOT / "model_repository", tritons, poll, models="identity", **settings))
        return made[-1]

    yield one
    for gateway in made:
        with contextlib.suppress(AssertionError):  # never started
            if gateway.process.poll() is None:
                gateway.process.send_signal(signal.SIGCONT)
                gateway.stop()


def test_database_down_at_start_is_live_not_ready_and_never_open(
    cluster: Cluster, make: Make, poll: Callable[..., None]
) -> None:
    url = cluster.postgresql.create_database()
    gateway = make(database_url=url).bootstrap()
    cluster.postgresql.stop()
    try:
        gateway.start()
        assert status(gateway, "/healthz/live") == 200
        assert status(gateway, "/healthz/ready") == 503
        for method, path in ROUTES:
            for headers in (gateway.headers, {"authorization": "Bearer tg_live_x"}, {}):
                answer = httpx.request(method, gateway.url + path, headers=headers, json={}, timeout=20)
                assert answer.status_code in {401, 503}, (method, path, answer.text)
            answer = httpx.request(method, gateway.url + path, headers=gateway.headers, json={}, timeout=20)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
    finally:
        cluster.postgresql.start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    assert infer(gateway).status_code == 200
    assert gateway.process.poll() is None
    assert "hunter" not in gateway.log_file.read_text()


def test_another_databases_pepper_never_opens(cluster: Cluster, make: Make, poll: Callable[..., None]) -> None:
    url = cluster.postgresql.create_database()
    first = make(database_url=url).bootstrap()
    assert first.key
    stranger = make(database_url=url)  # a pepper of its own
    cluster.postgresql.stop()
    try:
        stranger.key = first.key
        stranger.start()
    finally:
        cluster.postgresql.start()
    poll(lambda: "pepper" in stranger.log_file.read_text(), 30, "its refusal")
    answer = httpx.get(f"{stranger.url}/healthz/ready", timeout=20)
    assert answer.status_code == 503
    assert "pepper" in answer.text
    assert infer(stranger).status_code == 503
    assert status(stranger, "/healthz/live") == 200


def test_a_read_only_database_changes_nothing_and_loses_nothing(
    cluster: Cluster, make: Make, poll: Callable[..., None]
) -> None:
    """What PostgreSQL is after a failover to a standby that nobody has promoted yet."""
    url = cluster.postgresql.create_database()
    gateway = make(database_url=url).bootstrap().start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    name = url.split("@/")[1].partition("?")[0]
    away = (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )
    cluster.postgresql.rows(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    cluster.postgresql.rows(url, away)
    answers = [infer(gateway) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}  # read, and spooled
    made = httpx.post(f"{gateway.url}/admin/projects", json={"name": "p"}, headers=gateway.headers, timeout=20)
    assert made.status_code == 503, made.text
    cluster.postgresql.rows(cluster.database_url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    cluster.postgresql.rows(url, away)
    ids = {answer.headers["x-tidegate-usage-id"] for answer in answers}
    query = "SELECT usage_id FROM usage_records WHERE state = 'completed'"
    poll(lambda: ids == {row[0] for row in cluster.postgresql.rows(url, query)}, 60, "the records")
    made = httpx.post(f"{gateway.url}/admin/projects", json={"name": "p"}, headers=gateway.headers, timeout=20)
    assert made.status_code == 201, made.text
    assert '"level":"error"' not in gateway.log_file.read_text().replace(" ", "")


def test_a_database_that_is_restarted_in_service_costs_changes_and_new_keys_only(
    cluster: Cluster, make: Make, poll: Callable[..., None]
) -> None:
    """Down under load, and back: who was known is served and billed, everything else fails closed."""
    url = cluster.postgresql.create_database()
    gateway = make(database_url=url).bootstrap().start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    fresh = {"authorization": f"Bearer {gateway.make_key('shop')}"}  # never used before the database goes
    served = [infer(gateway)]
    cluster.postgresql.stop()
    try:
        served += [infer(gateway) for _ in range(50)]
        unknown = {"authorization": f"Bearer {keyformat.generate(keyformat.generate_id(), test=False).text}"}
        closed = [infer(gateway, **headers) for headers in (fresh, unknown)]
        for method, path, body in (
            ("POST", "/admin/projects", {"name": "p"}), ("POST", "/admin/keys", {"project": "shop"}),
            ("PUT", "/admin/tiers/gold", {"concurrency": 1}), ("GET", "/admin/audit", None),
            ("PUT", "/admin/budgets/project/shop/day", {"limit_usd": 1}), ("GET", "/admin/usage", None),
        ):  # fmt: skip
            closed.append(httpx.request(method, gateway.url + path, json=body, headers=gateway.headers, timeout=20))
        malformed = infer(gateway, authorization="Bearer tg_live_nonsense")
        poll(lambda: status(gateway, "/healthz/ready") == 503, 30, "a gateway that is not ready")
        assert status(gateway, "/healthz/live") == 200
    finally:
        cluster.postgresql.start()
    assert {answer.status_code for answer in served} == {200}
    assert malformed.status_code == 401
    for answer in closed:
        assert answer.status_code == 503, (answer.request.url, answer.text)
        assert int(answer.headers["retry-after"]) >= 1
        assert "postgres" not in answer.text.lower()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    poll(lambda: infer(gateway, **fresh).status_code == 200, 30, "the new key")
    ids = {answer.headers["x-tidegate-usage-id"] for answer in served}
    query = "SELECT usage_id FROM usage_records WHERE state = 'completed'"
    poll(lambda: ids <= {row[0] for row in cluster.postgresql.rows(url, query)}, 60, "the records")
    tier = {"concurrency": 1}
    changed = httpx.put(f"{gateway.url}/admin/tiers/gold", json=tier, headers=gateway.headers, timeout=20)
    assert changed.status_code == 200, changed.text
    verified = httpx.get(f"{gateway.url}/admin/audit/verify", headers=gateway.headers, timeout=20).json()
    assert verified["whole"], verified
    assert "p" not in {row[0] for row in cluster.postgresql.rows(url, "SELECT name FROM projects")}


def test_a_malformed_key_and_a_limit_that_is_reached_ask_no_database(
    cluster: Cluster, make: Make, poll: Callable[..., None]
) -> None:
    """With PostgreSQL frozen, whatever asks it takes a second at least and is a 503 then."""
    gateway = make(database_url=cluster.postgresql.create_database()).bootstrap().start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    limit = {"requests_per_second": 0.001, "burst": 1}
    made = httpx.put(f"{gateway.url}/admin/tiers/default", json=limit, headers=gateway.headers, timeout=20)
    assert made.status_code == 200, made.text
    assert infer(gateway).status_code == 200
    frozen = cluster.postgresql.freeze()
    try:
        with httpx.Client(base_url=gateway.url, timeout=20) as client:
            wrong = {"authorization": f"Bearer {gateway.key[:-1]}{'0' if gateway.key[-1] != '0' else '1'}"}
            malformed = [client.post(INFER, json=BODY, headers=wrong) for _ in range(10)]
            limited = [client.post(INFER, json=BODY, headers=gateway.headers) for _ in range(100)]
        unknown = {"authorization": f"Bearer {keyformat.generate(keyformat.generate_id(), test=False).text}"}
        asked = httpx.post(gateway.url + INFER, json=BODY, headers=unknown, timeout=20)
    finally:
        for process in frozen:
            process.resume()
    assert {answer.status_code for answer in malformed} == {401}
    assert {answer.status_code for answer in limited} == {429}
    assert asked.status_code == 503
    slowest = max(answer.elapsed.total_seconds() for answer in [*malformed, *limited])
    assert slowest < 0.9 < asked.elapsed.total_seconds()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("log_there", [False, True], ids=["log elsewhere", "log on it"])
def test_a_full_disk_refuses_and_recovers_by_itself(
    make: Make, small_disk: Path, poll: Callable[..., None], log_there: bool
) -> None:
    gateway = make(data_dir=str(small_disk / "data")).bootstrap()
    if log_there:
        gateway.log_file = small_disk / "gateway.log"
    gateway.start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    served = [infer(gateway) for _ in range(20)]
    fill(small_disk / "ballast")
    answers: list[httpx.Response] = []

    def refused() -> bool:
        answers.append(infer(gateway))
        return answers[-1].status_code == 503

    poll(refused, 60, "a refusal")  # pages that were there already may take some more
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert int(answers[-1].headers["retry-after"]) >= 1
    made = httpx.post(f"{gateway.url}/admin/projects", json={"name": "p"}, headers=gateway.headers, timeout=20)
    assert made.status_code == 503, made.text
    poll(lambda: status(gateway, "/healthz/ready") == 503, 10, "a gateway that is not ready")
    assert status(gateway, "/healthz/live") == 200
    if log_there:

        def lost() -> bool:
            answers.append(infer(gateway))
            assert answers[-1].status_code in {200, 503}, answers[-1].text
            return metric(gateway, "tidegate_log_lines_lost_total") > 0

        poll(lost, 30, "a line that is lost, and counted")
        poll(refused, 60, "a refusal again")  # it is none of the log's that the disk is full
    assert metric(gateway, "tidegate_journal_failures_total") > 0
    (small_disk / "ballast").unlink()
    poll(lambda: infer(gateway).status_code == 200, 30, "recovery")
    made = httpx.post(f"{gateway.url}/admin/projects", json={"name": "p"}, headers=gateway.headers, timeout=20)
    assert made.status_code == 201, made.text
    verified = httpx.get(f"{gateway.url}/admin/audit/verify", headers=gateway.headers, timeout=20).json()
    assert verified["whole"], verified
    ids = {answer.headers["x-tidegate-usage-id"] for answer in [*served, *answers] if answer.status_code == 200}

    def recorded() -> bool:
        states = {usage_id: state for usage_id, (state, _, _) in gateway.usage().items()}
        return all(states.get(usage_id) == "completed" for usage_id in ids)

    poll(recorded, 30, "the records")
    assert metric(gateway, 'tidegate_usage_records_total{state="dropped"}') == 0
    assert gateway.process.poll() is None
    assert gateway.stop() == 0


def test_a_disk_that_is_read_only_at_start_is_one_line(make: Make, small_disk: Path) -> None:
    gateway = make(data_dir=str(small_disk / "data")).bootstrap()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        with pytest.raises(AssertionError):
            gateway.start()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    lines = gateway.log_file.read_text().strip().splitlines()
    assert "Traceback" not in gateway.log_file.read_text()
    assert "ead-only" in lines[-1] or "readonly" in lines[-1], lines


def test_names_that_do_not_resolve_keep_it_live_and_not_ready(make: Make) -> None:
    gateway = make(
        database_url="postgresql://tidegate:hunter2@database.invalid/tidegate", triton_urls="triton.invalid:8001"
    ).start()
    gateway.key = "tg_live_x"
    answer = httpx.get(f"{gateway.url}/healthz/ready", timeout=20)
    assert answer.status_code == 503
    assert status(gateway, "/healthz/live") == 200
    assert infer(gateway).status_code == 401
    assert "hunter2" not in gateway.log_file.read_text() + answer.text
    assert "database.invalid" not in answer.text


def test_without_file_descriptors_it_refuses_and_recovers(make: Make, poll: Callable[..., None]) -> None:
    gateway = make().bootstrap().start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    assert infer(gateway).status_code == 200
    process = gateway.process
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    host, port = gateway.url.removeprefix("http://").split(":")
    with httpx.Client(base_url=gateway.url, headers=gateway.headers, timeout=20) as kept:
        assert kept.post(INFER, json=BODY).status_code == 200
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 8, before[1]))
        crowd = [socket.create_connection((host, int(port)), timeout=5) for _ in range(64)]
        try:
            for _ in range(20):
                answer = kept.post(INFER, json=BODY)
                assert answer.status_code == 200, answer.text  # who is in is served
        finally:
            for connection in crowd:
                connection.close()
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
    poll(lambda: _answers(gateway), 30, "new connections")
    assert process.poll() is None


def _answers(gateway: GatewayProcess) -> bool:
    try:
        return infer(gateway).status_code == 200
    except httpx.TransportError:
        return False


def test_a_gateway_that_stood_still_goes_on_where_it_was(make: Make, poll: Callable[..., None]) -> None:
    """A processor taken away for a while: a frozen virtual machine, a throttled container."""
    gateway = make().bootstrap().start()
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")
    served: list[Any] = [infer(gateway)]
    gateway.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(gateway.url + INFER, json=BODY, headers=gateway.headers, timeout=3)
    finally:
        gateway.process.send_signal(signal.SIGCONT)
    poll(lambda: _answers(gateway), 30, "its return")
    poll(lambda: status(gateway, "/healthz/ready") == 200, 30, "readiness")

    def states() -> set[str]:
        return {state for state, _, _ in gateway.usage().values()}

    poll(lambda: len(gateway.usage()) >= 2 and "reserved" not in states(), 30, "the records")
    assert states() <= {"completed", "client_closed"}
    assert served[0].headers["x-tidegate-usage-id"] in gateway.usage()
