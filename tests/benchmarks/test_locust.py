"""The plain ``locust`` command with our file, against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks

ROOT = Path(benchmarks.__file__).parent


def _locust(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--hdr-out", str(tmp_path / "hdr")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path)


@pytest.mark.slow
def test_locust_counts_right_answers_in_an_hdr_histogram(start_server: Callable[..., str], tmp_path: Path) -> None:
    done = _locust(
        tmp_path,
        "-f",
        str(ROOT / "locustfile.py"),
        "--host",
        start_server(),
        "-u",
        "4",
        "-r",
        "4",
        "-t",
        "4s",
        "IdentityUser",
    )
    assert done.returncode == 0, done.stderr
    latency = json.loads((tmp_path / "hdr" / "latency.json").read_text())["identity"]
    counted = re.search(r"Aggregated\s+(\d+)\s+0\(0\.00%\)", done.stdout + done.stderr)
    assert counted is not None, done.stdout + done.stderr
    assert latency["samples"] == int(counted[1]) > 0
    assert (tmp_path / "hdr" / "identity.hgrm").is_file()


@pytest.mark.slow
def test_wrong_answers_are_failures(start_server: Callable[..., str], tmp_path: Path) -> None:
    # The server echoes bytes: no vector of 384 numbers, and 200 all the same.
    done = _locust(
        tmp_path, "-f", str(ROOT / "locustfile.py"), "--host", start_server(), "-u", "1", "-t", "3s", "EmbeddingsUser"
    )
    assert done.returncode == 1
    assert "wrong answer" in done.stdout + done.stderr
    assert not (tmp_path / "hdr").exists()


@pytest.mark.slow
def test_a_shape_drives_the_users_and_workers_merge_their_histograms(
    start_server: Callable[..., str], tmp_path: Path
) -> None:
    files = f"{ROOT / 'locustfile.py'},{ROOT / 'shapes' / 'steps.py'}"
    done = _locust(
        tmp_path,
        "-f",
        files,
        "--host",
        start_server(),
        "--step-seconds",
        "2",
        "--step-last",
        "2",
        "--processes",
        "2",
        "IdentityUser",
    )
    assert "IdentityUser" in done.stderr + done.stdout
    latency = json.loads((tmp_path / "hdr" / "latency.json").read_text())["identity"]
    assert latency["samples"] > 0
