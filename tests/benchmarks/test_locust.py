"""The plain ``locust`` command with our file, against real servers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks
from benchmarks.floor import free_port

ROOT = Path(benchmarks.__file__).parent
LOCUSTFILE = ROOT / "locustfile.py"

pytestmark = pytest.mark.slow


def _locust(folder: Path, host: str, *arguments: str, files: str = str(LOCUSTFILE)) -> tuple[int, str]:
    """Exit code and output."""
    command = [sys.executable, "-m", "locust", "-f", files, "--host", host, "--headless", "--only-summary"]
    done = subprocess.run(
        [*command, "--hdr-out", str(folder / "hdr"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    return done.returncode, done.stdout + done.stderr


def _requests(output: str) -> int:
    """Of Locust's own statistics, none of them failed."""
    counted = re.search(r"Aggregated\s+(\d+)\s+0\(0\.00%\)", output)
    assert counted is not None, output
    return int(counted[1])


def _samples(folder: Path) -> int:
    found: int = json.loads((folder / "hdr" / "latency.json").read_text())["identity"]["samples"]
    return found


def test_right_answers_are_counted_in_an_hdr_histogram(start_server: Callable[..., str], tmp_path: Path) -> None:
    code, output = _locust(tmp_path, start_server(), "-u", "4", "-r", "4", "-t", "4s", "IdentityUser")
    assert code == 0, output
    assert _samples(tmp_path) == _requests(output) > 0
    assert (tmp_path / "hdr" / "identity.hgrm").is_file()


def test_wrong_answers_are_failures(start_server: Callable[..., str], tmp_path: Path) -> None:
    # The server echoes bytes: no vector of 384 numbers, and 200 all the same.
    code, output = _locust(tmp_path, start_server(), "-u", "1", "-t", "3s", "EmbeddingsUser")
    assert code == 1
    assert "wrong answer" in output
    counted = json.loads((tmp_path / "hdr" / "tallies.json").read_text())["tallies"]["embeddings"]["counters"]
    assert set(counted["outcomes"]) == {"wrong"}


def test_users_are_narrowed_in_all_processes_and_their_counts_are_summed(
    start_server: Callable[..., str], tmp_path: Path
) -> None:
    code, output = _locust(
        tmp_path, start_server(), "-u", "4", "-r", "4", "-t", "4s", "--processes", "2", "--stop-timeout", "2",
        *_ports(), "--tidegate-models", "identity",
    )  # fmt: skip
    assert code == 0, output
    assert "KeyError" not in output
    assert _samples(tmp_path) == _requests(output) > 0
    assert len(json.loads((tmp_path / "hdr" / "tallies.json").read_text())["cpu_s"]) == 2


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
def test_a_run_of_no_users_fails_and_says_why(
    start_server: Callable[..., str], tmp_path: Path, processes: tuple[str, ...]
) -> None:
    ports = _ports() if processes else ()
    code, output = _locust(
        tmp_path, start_server(), "-u", "1", "-t", "60s", *processes, *ports, "--tidegate-models", "nothing"
    )
    assert code != 0
    assert "no users are left; wanted: nothing" in output


def test_a_run_in_which_nothing_was_sent_fails(tmp_path: Path) -> None:
    idle = tmp_path / "idle.py"
    idle.write_text(
        "from locust import events, task, User\nfrom benchmarks.users import session\nsession.install(events)\n\n"
        "class Idle(User):\n    protocol = 'http'\n    model = workload = ''\n\n"
        "    @task\n    def wait(self):\n        self._sleep(60)\n"
    )
    code, output = _locust(tmp_path, "http://127.0.0.1:9", "-u", "1", "-t", "2s", files=str(idle))
    assert code == 1
    assert "not one request was sent" in output


def test_only_the_window_counts(start_server: Callable[..., str], tmp_path: Path) -> None:
    code, output = _locust(
        tmp_path, start_server(), "-u", "2", "-r", "2", "--warmup-seconds", "1", "--window-seconds", "2",
        "--stop-timeout", "1", "IdentityUser",
    )  # fmt: skip
    assert code == 0, output
    counters = json.loads((tmp_path / "hdr" / "tallies.json").read_text())["tallies"]["identity"]["counters"]
    assert set(counters["seconds"]) == {"0", "1"}
    assert 0 < counters["outcomes"]["ok"] == counters["totals"]["finished"] < counters["totals"]["answered"]
    assert counters["totals"]["answered"] == _requests(output)


def test_a_shape_drives_the_users(start_server: Callable[..., str], tmp_path: Path) -> None:
    code, output = _locust(
        tmp_path, start_server(), "--step-seconds", "2", "--step-last", "2", "IdentityUser",
        files=f"{LOCUSTFILE},{ROOT / 'shapes' / 'steps.py'}",
    )  # fmt: skip
    assert code == 0, output
    assert '"IdentityUser": 2' in output
    assert _samples(tmp_path) > 0


def test_bursts_multiply_the_users_and_end(start_server: Callable[..., str], tmp_path: Path) -> None:
    code, output = _locust(
        tmp_path, start_server(), "--burst-users", "1", "--burst-factor", "3", "--burst-period", "4",
        "--burst-seconds", "6", "IdentityUser", files=f"{LOCUSTFILE},{ROOT / 'shapes' / 'bursts.py'}",
    )  # fmt: skip
    assert code == 0, output
    counts = re.findall(r"Shape test updating to (\d+) users", output)
    assert counts[:3] == ["3", "1", "3"]
    assert _requests(output) > 0


def _ports() -> tuple[str, ...]:
    """For a master that runs beside others."""
    port = str(free_port())
    return "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port
