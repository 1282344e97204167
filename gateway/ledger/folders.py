"""Whose journal is whose: one folder per gateway process, held by a lock that dies with the process.

A folder appears under its name with the lock already taken (it is made under another name and
renamed), so a folder that can be locked belongs to a process that is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_NEW = ".new-"
_GONE = ".gone-"
_STALE_S = 60.0


class JournalFolder:
    """A journal folder that this process holds, its own or a dead gateway's."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @property
    def gateway_id(self) -> str:
        """The gateway that made it."""
        return self.path.name

    def remove(self) -> None:
        """Delete the folder with all that is in it, and let go of the lock.

        It loses its name first: half deleted, it is a journal no more.
        """
        gone = self.path.with_name(f"{_GONE}{self.path.name}")
        self.path.rename(gone)
        shutil.rmtree(gone)
        self.close()

    def close(self) -> None:
        """Let go of the lock and leave the folder for whoever comes next."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def create_folder(root: Path, gateway_id: str) -> JournalFolder:
    """Make and hold ``root/gateway_id``. Raises ``OSError`` (``FileExistsError``: the id is taken)."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, new = root / gateway_id, root / f"{_NEW}{gateway_id}"
    if path.exists():
        raise FileExistsError(path)
    new.mkdir(mode=0o700)
    lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(path)
    sync_folder(root)
    return JournalFolder(path, lock)


def orphans(root: Path) -> Iterator[JournalFolder]:
    """Folders below ``root`` whose gateway is dead, each held until it is closed or removed."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith(_NEW):
            _sweep(path, _STALE_S)
        elif path.name.startswith(_GONE):
            _sweep(path, 0.0)
        elif not path.name.startswith(".") and (lock := _try_lock(path)) is not None:
            yield JournalFolder(path, lock)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR)
    except OSError:  # just removed, or no journal folder at all
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (path / _LOCK).stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except OSError:  # held, or removed by the one that held it
        pass
    os.close(lock)
    return None


def _sweep(path: Path, age_s: float) -> None:
    """Remove what a process left that died while it made or deleted its folder; a young one may be being made."""
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime >= age_s:
            shutil.rmtree(path)
