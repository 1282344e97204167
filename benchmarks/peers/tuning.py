"""What ``python -m benchmarks.peers tune`` found, kept in a file that ``run`` reads."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.peers.ways import Way
from benchmarks.recording import as_dict


class Tuned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The way that suits one peer and one task, and what it was chosen from."""

    way: Way
    goodput: dict[str, float]
    """Right answers in time, a second, by way that was tried."""
    command: str
    utc: str
    commit: str
    cores: int


class Tuning(msgspec.Struct, forbid_unknown_fields=True):
    """``tuning.json``."""

    tuned: dict[str, dict[str, Tuned]] = {}
    """By peer and task."""

    def ways(self, task: str) -> dict[str, Way]:
        """How each peer does ``task``, as far as it was tuned."""
        return {peer: found[task].way for peer, found in self.tuned.items() if task in found}

    def commands(self) -> list[str]:
        """What was typed to find all this, oldest first."""
        found = sorted({(item.utc, item.command) for tasks in self.tuned.values() for item in tasks.values()})
        return list(dict.fromkeys(command for _, command in found))


class TuningError(Exception):
    """The file cannot be read; the message says why."""


def read(path: Path) -> Tuning:
    """What the file holds; nothing if there is none. Raises :class:`TuningError`."""
    if not path.is_file():
        return Tuning()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tuning)
    except msgspec.MsgspecError as error:
        raise TuningError(f"{path} is not what tune writes ({error}): remove it and tune again") from error


def write(tuning: Tuning, path: Path) -> None:
    """The whole file anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(as_dict(tuning)), indent=1) + b"\n")
