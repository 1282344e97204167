"""Who may run: any number of tests together, or one alone, over all of a run's processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """Two files that processes lock. Who wants to be alone holds the gate meanwhile, so that nobody new begins."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._gate, self._room = folder / "gate", folder / "room"

    @contextmanager
    def together(self) -> Iterator[None]:
        """With others, but not while one is alone."""
        with self._room.open("w") as room:
            with self._gate.open("w") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(room, fcntl.LOCK_SH)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """When everybody who is at it has ended."""
        with self._room.open("w") as room, self._gate.open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX)
            yield
