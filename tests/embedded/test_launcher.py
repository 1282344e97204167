"""Starting, watching and stopping the real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from embedded.errors import EmbeddedTritonError, ModelLoadError, PortInUseError, ServerDiedError, WheelNotFoundError
from embedded.guard import PREFIX, SHM
from embedded.launcher import EmbeddedTriton, serving

pytestmark = pytest.mark.live
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for: {what}"
        time.sleep(0.05)


def regions(prefix: str) -> set[str]:
    return {region.name for region in SHM.glob(f"{prefix}*")}


def prefix_of(server: psutil.Process) -> str:
    """How the names of a server's shared memory begin: other servers may run on this machine."""
    option = "--backend-config=python,shm-region-prefix-name="
    (value,) = [part.removeprefix(option) for part in server.cmdline() if part.startswith(option)]
    assert value.startswith(PREFIX)
    return value.rstrip("_")


def family(triton: EmbeddedTriton) -> list[psutil.Process]:
    """The server and its stubs."""
    assert triton.pid is not None
    server = psutil.Process(triton.pid)
    return [server, *server.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Iterator[EmbeddedTriton]:
    """A server of the test's own, with one model ready."""
    with serving(repository, tmp_path / "work", ["identity"]) as triton:
        prefix = prefix_of(family(triton)[0])
        yield triton
        if triton.pid is not None:
            prefix = prefix_of(family(triton)[0])
    assert not regions(prefix), "shared memory was left behind"


def test_stop_leaves_no_process_and_no_shared_memory(own: EmbeddedTriton) -> None:
    processes = family(own)
    assert len(processes) == 2, "the server and the stub of its model"
    prefix = prefix_of(processes[0])
    assert len(regions(prefix)) == 2, "the region of the stub and the lock"
    own.stop()
    assert not regions(prefix)
    assert gone(processes)
    assert own.poll() == 0
    assert own.pid is None
    own.stop()


def test_a_server_that_does_not_react_is_killed_after_the_grace(own: EmbeddedTriton) -> None:
    processes = family(own)
    processes[0].suspend()
    own.stop(grace_s=0.2)
    assert own.poll() == -signal.SIGKILL
    assert gone(processes)


def test_a_killed_server_is_restarted_on_its_ports_with_its_models(own: EmbeddedTriton) -> None:
    own.load("add_sub")
    urls = own.http_url, own.grpc_url, own.metrics_url
    processes = family(own)
    prefix = prefix_of(processes[0])
    restarts: list[int | None] = []
    errors: list[EmbeddedTritonError] = []
    deaths: list[str] = []
    own.watch(lambda: restarts.append(own.pid), errors.append, deaths.append, interval_s=0.1)
    processes[0].kill()
    wait_until(lambda: bool(restarts), "a restart")
    assert errors == []
    assert deaths == ["killed by SIGKILL"]
    assert gone(processes), "stubs of the dead server are still there"
    assert not regions(prefix), "shared memory of the dead server is still there"
    assert (own.http_url, own.grpc_url, own.metrics_url) == urls
    assert own.ready_models() == {"identity", "add_sub"}
    assert own.pid == restarts[0] != processes[0].pid


def test_ensure_running_restarts_by_hand_and_not_after_stop(own: EmbeddedTriton) -> None:
    assert own.ensure_running()
    first = own.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: own.poll() is not None, "the death to be noticed")
    assert own.poll() == -signal.SIGKILL
    assert own.ensure_running()
    assert own.pid not in {None, first}
    assert own.ready_models() == {"identity"}
    own.stop()
    assert not own.ensure_running()
    assert own.poll() == 0


def test_it_listens_on_loopback_only(own: EmbeddedTriton) -> None:
    listening = [
        connection.laddr
        for process in family(own)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    addresses = {f"{address.ip.removeprefix('::ffff:')}:{address.port}" for address in listening}
    assert addresses == {own.http_url, own.grpc_url, own.metrics_url}


def test_nothing_outlives_a_killed_parent(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "embedded", "--model-repository", str(repository), "--work-dir", str(tmp_path),
        "--models", "identity", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        first = parent.stdout.readline()
        assert first == "identity is ready (1 of 1)\n"
        descendants = psutil.Process(parent.pid).children(recursive=True)
        assert len(descendants) == 3, "the guard, the server and the stub"
        prefix = prefix_of(descendants[1])
        parent.kill()
    wait_until(lambda: gone(descendants), "the server and its stub to end")
    assert not regions(prefix)


def test_nothing_outlives_a_killed_guard_and_the_next_start_cleans_up(own: EmbeddedTriton) -> None:
    processes = family(own)
    guard = processes[0].parent()
    assert guard is not None
    prefix = prefix_of(processes[0])
    guard.kill()
    wait_until(lambda: gone(processes), "the server and its stub to end")
    wait_until(lambda: own.poll() is not None, "the death to be noticed")
    assert own.ensure_running()
    assert not regions(prefix)


def test_control_c_ends_the_foreground_command(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "embedded", "--model-repository", str(repository), "--work-dir", str(tmp_path),
        "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("HTTP 127.0.0.1:")
        descendants = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(DEADLINE_S) == 0
    assert gone(descendants)


def test_wait_ready_reports_each_model_and_names_the_one_that_fails(repository: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with EmbeddedTriton(repository, tmp_path, ["add_sub", "corrupt", "identity"], 0, 0, 0) as triton:
        with pytest.raises(ModelLoadError, match=r"model 'corrupt' did not load: .*model\.onnx cannot be loaded"):
            triton.wait_ready(on_model=lambda name, ready, total: seen.append((name, ready, total)))
        assert triton.ready_models() == {"add_sub", "identity"}
    assert sorted(name for name, _, _ in seen) == ["add_sub", "identity"]
    assert [(ready, total) for _, ready, total in seen] == [(1, 3), (2, 3)]


def test_an_interrupt_does_not_wait_for_models_that_load(repository: Path, tmp_path: Path) -> None:
    """Ctrl-C is raised in the thread that waits, wherever it waits: in its callback as well."""

    def interrupt(name: str, ready: int, total: int) -> None:
        family(triton)[0].suspend()  # the load that goes on will not end before its server does
        raise KeyboardInterrupt

    with EmbeddedTriton(repository, tmp_path, ["add_sub", "identity"], 0, 0, 0, load_threads=1) as triton:
        with pytest.raises(KeyboardInterrupt):
            triton.wait_ready(on_model=interrupt)
        family(triton)[0].resume()


def test_an_unknown_model_is_named(triton: EmbeddedTriton) -> None:
    with pytest.raises(ModelLoadError, match="model 'no-such-model' did not load"):
        triton.load("no-such-model")


@pytest.mark.parametrize(("place", "purpose"), [(0, "HTTP"), (1, "gRPC"), (2, "metrics")])
def test_a_port_in_use_is_named(repository: Path, tmp_path: Path, place: int, purpose: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [0, 0, 0]
        ports[place] = other.getsockname()[1]
        triton = EmbeddedTriton(repository, tmp_path, (), *ports)
        with pytest.raises(PortInUseError, match=rf"port {ports[place]} \({purpose} of Triton\) is already in use"):
            triton.start()
        assert triton.poll() == 0


def test_a_missing_wheel_is_said(repository: Path, tmp_path: Path) -> None:
    triton = EmbeddedTriton(repository, tmp_path / "work", (), 0, 0, 0, wheel_search=[tmp_path])
    with pytest.raises(WheelNotFoundError, match=r"no Triton server is installed; pip install 'tidegate\[embedded\]'"):
        triton.start()


def test_a_missing_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedTritonError, match="is not a folder"):
        EmbeddedTriton(tmp_path / "nothing", tmp_path / "work", (), 0, 0, 0).start()


def test_a_server_that_dies_at_start_shows_its_last_words(repository: Path, tmp_path: Path) -> None:
    triton = EmbeddedTriton(repository, tmp_path, (), 0, 0, 0, extra_arguments=["--rate-limit=nonsense"])
    with pytest.raises(ServerDiedError, match="exit code 1.*triton.log: .*invalid argument for --rate-limit") as death:
        triton.start()
    assert "\n" not in str(death.value)
    assert triton.pid is None


def test_a_second_start_is_refused(triton: EmbeddedTriton) -> None:
    with pytest.raises(EmbeddedTritonError, match="already running"):
        triton.start()
