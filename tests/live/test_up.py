"""``tidegate up`` itself: what it prints, what it refuses, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import BUILDING_S
from tests.live.conftest import ROOT, START_S, start_stack, stop_stack

pytestmark = [pytest.mark.live, pytest.mark.timeout(BUILDING_S)]
PROC = Path("/proc")


def children(marker: str) -> list[int]:
    """Processes whose command line or environment speaks of ``marker``."""
    found = []
    for entry in PROC.glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


PORTS = ("PORT", "GRPC_PORT", "ADMIN_PORT", "DASHBOARD_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT",
         "TRITON_METRICS_PORT")  # fmt: skip


def variables(data_dir: Path) -> dict[str, str]:
    """The environment of a stack on free ports."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    free = {f"TIDEGATE_{name}": "0" for name in PORTS}
    return own | free | {"TIDEGATE_DATA_DIR": str(data_dir), "TIDEGATE_TRITON_STOP_S": "0"}


def refuse(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``tidegate up``, which says in one line why it does not start, and leaves nothing running."""
    before = children(str(data_dir))
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", "up", *arguments],
        env=variables(data_dir) | environment, capture_output=True, text=True, cwd=ROOT, timeout=240,
    )  # fmt: skip
    assert done.returncode in {1, 2}
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert children(str(data_dir)) == before
    return done


@contextlib.contextmanager
def begun(data_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``tidegate up`` on its way to be ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "tidegate", "up", *arguments],
        env=variables(data_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def interrupted(process: subprocess.Popen[str]) -> None:
    """Ctrl-C before it is ready: it says so, and ends as a shell expects."""
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if line] == ["stopping …", "stopped; nothing is left running"]


def repository_of(folder: Path, *names: str) -> Path:
    """A repository with copies of these models, built."""
    repository = folder / "repository"
    for name in names:
        shutil.copytree(ROOT / "model_repository" / name, repository / name)
    return repository


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


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    assert "no model named nonsense" in refuse(tmp_path, "--models", "nonsense").stderr


def test_a_misspelt_setting_is_one_line(tmp_path: Path) -> None:
    assert "TIDEGATE_PROT" in refuse(tmp_path, TIDEGATE_PROT="1").stderr


def without_recipe(model: Path) -> str:
    (model / "model.yaml").unlink()
    return "no model named digits"


def without_weights(model: Path) -> str:
    recipe = model / "model.yaml"
    recipe.write_text(recipe.read_text().replace("trained, name: digits", "trained, name: nowhere"))
    return "nowhere"


def with_another_file(model: Path) -> str:
    path = model / "1" / "model.pt"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "is not the file that was validated"


@pytest.mark.parametrize("damage", [without_recipe, without_weights, with_another_file])
def test_a_model_that_cannot_be_served_is_one_line(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    repository = repository_of(tmp_path, "digits")
    says = damage(repository / "digits")
    done = refuse(tmp_path, "--models", "digits", "--model-repository", str(repository))
    assert "digits" in done.stderr
    assert says in done.stderr


def test_no_model_at_all_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    assert "no model in" in refuse(tmp_path, "--model-repository", str(tmp_path / "repository")).stderr


def test_a_ready_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = refuse(tmp_path, "--models", "identity", "--no-dashboard", "--ready-file", "/proc/nowhere/ready.json")
    assert "/proc/nowhere/ready" in done.stderr


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--no-dashboard",))], ids=["SIGINT", "SIGTERM"]
)
def test_ending_it_leaves_no_process(
    tmp_path: Path, poll: Callable[..., None], number: signal.Signals, options: tuple[str, ...]
) -> None:
    data_dir = tmp_path / "[" / "data]"  # what could be taken for markup
    data_dir.mkdir(parents=True)
    in_order = {"TIDEGATE_TRITON_STOP_S": "10"}
    running = start_stack(data_dir, "--models", "identity", *options, poll=poll, **in_order)
    try:
        assert httpx.get(f"{running.gateway_url}/healthz/ready").status_code == 200
        (line,) = re.findall(r"^\s+(curl .*)$", running.log_file.read_text(), re.MULTILINE)
        asked = subprocess.run(["bash", "-euc", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert '"name":"identity"' in asked.stdout
        running.process.send_signal(number)
        assert running.process.wait(60) == 0
    finally:
        stop_stack(running)
    poll(lambda: not children(str(tmp_path)), 10, "the end of every process")


def test_ending_it_while_it_builds_leaves_no_process(tmp_path: Path, poll: Callable[..., None]) -> None:
    repository = repository_of(tmp_path, "digits", "identity")
    for name in ("digits", "identity"):
        (repository / name / "card.json").unlink()
    with begun(tmp_path, "--model-repository", str(repository)) as process:
        poll(lambda: len(children(str(tmp_path))) > 1, 60, "the build")
        interrupted(process)
    poll(lambda: not children(str(tmp_path)), 10, "the end of every process")


def test_ending_it_while_models_load_leaves_no_process(tmp_path: Path, poll: Callable[..., None]) -> None:
    log = tmp_path / "triton" / "triton.log"
    with begun(tmp_path) as process:
        poll(lambda: log.exists() and "loading" in log.read_text(), START_S, "the first model")
        interrupted(process)
    poll(lambda: not children(str(tmp_path)), 10, "the end of every process")


def test_a_triton_that_dies_is_said_and_a_second_stack_refused(tmp_path: Path, poll: Callable[..., None]) -> None:
    running = start_stack(tmp_path, "--models", "identity", "--no-dashboard", poll=poll)
    try:
        line = refuse(tmp_path, "--models", "identity").stderr
        assert f"another tidegate up runs on {tmp_path}" in line
        assert httpx.get(f"{running.gateway_url}/healthz/ready").status_code == 200
        (server,) = [
            pid for pid in children(str(tmp_path)) if (PROC / str(pid) / "comm").read_text() == "tritonserver\n"
        ]
        os.kill(server, signal.SIGKILL)
        poll(lambda: "Triton serves again" in running.log_file.read_text(), 120, "the restart")
        assert running.log_file.read_text().count("Triton has ended (killed by SIGKILL) and is restarted") == 1
    finally:
        stop_stack(running)


def test_killing_it_leaves_no_process(tmp_path: Path, poll: Callable[..., None]) -> None:
    running = start_stack(tmp_path, "--models", "identity", "--no-dashboard", poll=poll)
    running.process.kill()
    running.process.wait()
    poll(lambda: not children(str(tmp_path)), 60, "the end of every process")
