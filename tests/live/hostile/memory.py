"""What a process weighs while something is done to it: the largest of many looks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20
_PAGE = 4096


def resident_mib(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / MIB


class Peak:
    """Memory before the block, and the most that was seen in it. MiB."""

    def __init__(self, before: float) -> None:
        self.before = self.most = before

    @property
    def growth(self) -> float:
        """By how much it was more than before."""
        return self.most - self.before


@contextmanager
def peak(pid: int, interval_s: float = 0.005) -> Iterator[Peak]:
    """Look at the process ``pid`` again and again until the block ends."""
    seen, stop = Peak(resident_mib(pid)), threading.Event()

    def watch() -> None:
        while not stop.wait(interval_s):
            seen.most = max(seen.most, resident_mib(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        seen.most = max(seen.most, resident_mib(pid))
