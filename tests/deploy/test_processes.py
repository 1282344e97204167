"""The services of the compose file as processes: each takes its command line and passes its own health check."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
import redis

from tests.deploy.conftest import DEPLOY, ROOT
from tests.deploy.processes import checked, container
from tests.deploy.test_images import chain
from tidegate.processes import free_port

pytestmark = pytest.mark.slow

START_S = 90.0
ELSEWHERE = "127.0.0.2"
"""Reaches who listens on every interface, and not who listens on 127.0.0.1 alone."""
PASSWORD = "only-of-this-test"


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=10, trust_env=False)


def image_command(target: str) -> list[str]:
    """The command of an image of ours, for a service that gives none."""
    (line,) = [line for line in chain(target) if line.startswith("CMD ")]
    return list(json.loads(line.removeprefix("CMD ")))


def test_the_dashboard_is_healthy_and_listens_for_others(
    compose: dict[str, Any], tmp_path: Path, poll: Callable[..., None]
) -> None:
    service, port = compose["services"]["dashboard"], str(free_port("127.0.0.1"))
    here = {"8501": port, "gateway:8080": "127.0.0.1:1", "${PUBLIC_URL:-http://127.0.0.1:8080}": "http://127.0.0.1:1"}
    with container(image_command("dashboard"), tmp_path, service["environment"], here) as dashboard:
        poll(lambda: dashboard.passes(checked(service, here)), START_S, "the dashboard's health")
        assert get(f"http://{ELSEWHERE}:{port}/_stcore/health").text == "ok"
        assert "<title>Streamlit</title>" in get(f"http://{ELSEWHERE}:{port}/").text


@pytest.fixture
def echo() -> Iterator[str]:
    """Address of a server that answers the identity model's vectors."""
    script = ROOT / "tests" / "benchmarks" / "pause_server.py"
    process = subprocess.Popen([sys.executable, str(script), "0", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def test_a_master_and_a_worker_of_the_load_test_drive_a_gateway(
    compose: dict[str, Any], tmp_path: Path, poll: Callable[..., None], echo: str
) -> None:
    ignored = shutil.ignore_patterns("results", "__pycache__")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "app" / "benchmarks", ignore=ignored)
    master, worker = compose["services"]["locust-master"], compose["services"]["locust-worker"]
    port, link = str(free_port("127.0.0.1")), str(free_port("127.0.0.1"))
    here = {"/app/": f"{tmp_path / 'app'}/", "8089": port, "gateway:8080": echo, "locust-master": "127.0.0.1"}
    here["${LOADTEST_KEY:-}"] = "tg_live_any"
    narrow = ["--tidegate-models=identity"]
    lead = [*master["command"], f"--web-port={port}", f"--master-bind-port={link}", *narrow]
    follow = [*worker["command"], f"--master-port={link}", *narrow]
    url = f"http://127.0.0.1:{port}"
    with container(lead, tmp_path / "master", master["environment"], here) as leader:
        poll(lambda: leader.passes(checked(master, here)), START_S, "the master's health")
        with container(follow, tmp_path / "worker", worker["environment"], here) as follower:

            def stats() -> dict[str, Any]:
                return dict(get(f"{url}/stats/requests").json())

            poll(lambda: [found["state"] for found in stats()["workers"]] == ["ready"], START_S, "the worker")
            started = httpx.post(f"{url}/swarm", data={"user_count": "2", "spawn_rate": "2"}, trust_env=False).json()
            assert started["success"], started

            def answered() -> bool:
                (total,) = [row for row in stats()["stats"] if row["name"] == "Aggregated"]
                return total["num_requests"] > 0 and total["num_failures"] == 0

            poll(answered, START_S, "right answers")
            assert "Traceback" not in leader.said + follower.said


@pytest.fixture
def exporter() -> Iterator[int]:
    """Port of a real exporter of metrics."""
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("tidegate_requests", "Requests.", registry=registry).inc()
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_prometheus_scrapes_its_targets_and_evaluates_the_rules(
    compose: dict[str, Any],
    require_program: Callable[[str], str],
    tmp_path: Path,
    poll: Callable[..., None],
    exporter: int,
) -> None:
    service, port = compose["services"]["prometheus"], free_port("127.0.0.1")
    here = {"9090": str(port), "/etc/prometheus": str(tmp_path / "etc"), "path=/prometheus": f"path={tmp_path / 'db'}"}
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "etc")
    config = tmp_path / "etc" / "prometheus.yml"
    text = re.sub(r"(gateway:8082|triton:8002)", f"127.0.0.1:{exporter}", config.read_text(encoding="utf-8"))
    config.write_text(text.replace("9090", str(port)).replace("15s", "1s"), encoding="utf-8")
    command = [require_program("prometheus"), *service["command"], f"--web.listen-address=127.0.0.1:{port}"]
    api = f"http://127.0.0.1:{port}/api/v1"
    with container(command, tmp_path / "run", {}, here):
        poll(lambda: reachable(port) and get(f"http://127.0.0.1:{port}/-/ready").is_success, START_S, "Prometheus")

        def health() -> dict[str, str]:
            active = get(f"{api}/targets").json()["data"]["activeTargets"]
            return {target["labels"]["job"]: target["health"] for target in active}

        poll(lambda: set(health().values()) == {"up"}, START_S, "every target")
        assert set(health()) == {"tidegate", "triton", "prometheus"}

        def rules() -> list[dict[str, Any]]:
            return [rule for group in get(f"{api}/rules").json()["data"]["groups"] for rule in group["rules"]]

        poll(lambda: all(rule["health"] != "unknown" for rule in rules()), START_S, "the rules")
        assert len(rules()) > 10
        assert {rule["health"] for rule in rules()} == {"ok"}


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.redis
def test_valkey_asks_for_its_password_and_keeps_nothing(
    compose: dict[str, Any], require_program: Callable[[str], str], tmp_path: Path, poll: Callable[..., None]
) -> None:
    """Debian's Redis under the names of Valkey, which takes the same command line."""
    service, port = compose["services"]["valkey"], free_port("127.0.0.1")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("server", "cli"):
        (programs / f"valkey-{name}").symlink_to(require_program(f"redis-{name}"))
    here = {
        "128mb": f"128mb --bind 127.0.0.1 --port {port}",
        "valkey-cli": f"valkey-cli -p {port}",
        "${VALKEY_PASSWORD:?set it in .env}": PASSWORD,
    }
    with container(service["command"], tmp_path, service["environment"], here) as valkey:
        poll(lambda: valkey.passes(checked(service, here)), START_S, "Valkey's health")
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=port, password=PASSWORD) as known:
            configured = {name: known.config_get(name)[name] for name in ("save", "appendonly", "maxmemory")}
        assert configured == {"save": "", "appendonly": "no", "maxmemory": str(128 * 2**20)}
