"""Child processes of ``tidegate up``: their logs fill no disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tidegate.processes import ChildProcess

TALKER = """
import sys, time
number = 0
while True:
    print(f"line {number} " + "x" * 80, flush=True)
    number += 1
    time.sleep(0.001)
"""


def test_a_log_that_grew_too_large_begins_anew_under_the_process_that_writes_it(
    tmp_path: Path, poll: Callable[..., None]
) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    log = tmp_path / "logs" / "talker.log"
    child = ChildProcess("talker", ["talker"], log, {"PYTHONPATH": str(tmp_path)})
    try:
        poll(lambda: log.exists() and log.stat().st_size > 20_000, 30, "a long log")
        child.limit_log(10**9)
        assert log.stat().st_size > 20_000
        child.limit_log(20_000)
        assert log.stat().st_size < 20_000
        kept = log.with_suffix(".log.1").read_text().splitlines()
        assert kept[0].startswith("line 0 ")
        poll(lambda: log.stat().st_size > 1000, 30, "further lines")
        first = log.read_text().splitlines()[0]
        assert first.startswith("line ")  # where it begins, not where it went on: no hole
        assert child.running
    finally:
        child.stop(5.0)
