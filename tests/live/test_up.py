"""``tidegate up`` itself: what it prints, what it refuses, what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.conftest import ROOT, start_stack, stop_stack

pytestmark = pytest.mark.live


def children(marker: str) -> list[int]:
    """Processes whose command line or environment speaks of ``marker``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def refuse(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    ports = (
        "PORT",
        "GRPC_PORT",
        "ADMIN_PORT",
        "DASHBOARD_PORT",
        "TRITON_HTTP_PORT",
        "TRITON_GRPC_PORT",
        "TRITON_METRICS_PORT",
    )
    variables |= {f"TIDEGATE_{name}": "0" for name in ports} | {"TIDEGATE_DATA_DIR": str(data_dir)} | environment
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", "up", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_screen_says_everything(stack: Any) -> None:
    screen = stack.log_file.read_text()
    for wanted in (stack.gateway_url, stack.grpc_address, stack.dashboard_url, "demo.key", "curl -s", "sentiment"):
        assert wanted in screen
    assert (stack.data_dir / "demo.key").stat().st_mode & 0o777 == 0o600
    assert stack.key not in screen


def test_triton_listens_on_loopback_only(stack: Any) -> None:
    ports = {int(address.rpartition(":")[2]) for address in stack.triton.values()}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, _, port = address.rpartition(":")
            if state == "0A" and int(port, 16) in ports:
                assert host.endswith("0100007F")  # 127.0.0.1, in the IPv6 table mapped
                assert not host.removesuffix("0100007F").removesuffix("FFFF0000").strip("0")


def test_a_port_in_use_is_one_line_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = refuse(tmp_path, "--port", str(port))
        assert f"port {port} " in done.stderr
        assert "--port" in done.stderr
    assert children(str(tmp_path)) == []


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    assert "no model named nonsense" in refuse(tmp_path, "--models", "nonsense").stderr


def test_a_misspelt_setting_is_one_line(tmp_path: Path) -> None:
    assert "TIDEGATE_PROT" in refuse(tmp_path, TIDEGATE_PROT="1").stderr


def test_a_model_file_that_was_changed_is_not_served(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    source = ROOT / "model_repository" / "identity"
    subprocess.run(["cp", "-r", "--parents", "identity", str(_made(repository))], cwd=source.parent, check=True)
    model = repository / "identity" / "1" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert "identity" in refuse(tmp_path, "--model-repository", str(repository)).stderr


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_it_leaves_no_process(tmp_path: Path, poll: Callable[..., None], number: signal.Signals) -> None:
    running = start_stack(tmp_path, "--models", "identity", "--no-dashboard", poll=poll)
    try:
        assert httpx.get(f"{running.gateway_url}/healthz/ready").status_code == 200
        running.process.send_signal(number)
        assert running.process.wait(60) == 0
    finally:
        stop_stack(running)
    poll(lambda: not children(str(tmp_path)), 10, "the end of every process")


def test_killing_it_leaves_no_process(tmp_path: Path, poll: Callable[..., None]) -> None:
    running = start_stack(tmp_path, "--models", "identity", "--no-dashboard", poll=poll)
    running.process.kill()
    running.process.wait()
    poll(lambda: not children(str(tmp_path)), 60, "the end of every process")
