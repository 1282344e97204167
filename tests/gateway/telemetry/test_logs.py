"""Lines that cannot be written are counted, and whoever logs goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from gateway.telemetry.logs import Lines, lost_lines

LOGS = """
import logging, sys
import structlog
from gateway.telemetry import logs

logs.configure("info")
structlog.get_logger("ours").error("disk.full", error="ENOSPC")
logging.getLogger("theirs").error("also theirs")
print(logs.lost_lines())
"""


def run(stderr: Path) -> subprocess.CompletedProcess[str]:
    with stderr.open("wb") as file:
        return subprocess.run(
            [sys.executable, "-c", LOGS], stdout=subprocess.PIPE, stderr=file, text=True, timeout=60, check=False
        )


def test_a_full_disk_under_the_log_fails_nobody_and_is_counted() -> None:
    done = run(Path("/dev/full"))
    assert (done.returncode, done.stdout) == (0, "2\n")


def test_lines_are_json_and_none_is_lost(tmp_path: Path) -> None:
    done = run(tmp_path / "log")
    assert (done.returncode, done.stdout) == (0, "0\n")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["disk.full", "also theirs"]


def test_a_line_cut_off_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = Lines(descriptor)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        lines.write("one\n")
        lines.write("two and more\n")
        lines.write("three\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lines.write("four \ud800\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(descriptor)
    assert lines.lost == 2
    assert path.read_text(encoding="utf-8") == "one\ntwo an\nfour \\ud800\n"


def test_where_nobody_configured_a_log_nothing_is_counted() -> None:
    assert lost_lines() == 0
