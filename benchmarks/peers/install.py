"""``python -m benchmarks.peers install PEER``: a virtual environment for one peer."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

from benchmarks.peers.catalogue import PEERS, SHARED

HOME = Path(".tidegate") / "peers"


class InstallError(Exception):
    """pip failed; the message is its last line."""


def interpreter(peer: str, home: Path = HOME) -> Path:
    """The Python of the peer's environment."""
    return (home / peer / "bin" / "python").absolute()


def install(peer: str, home: Path = HOME) -> Path:
    """Make the environment if it is not there; returns its Python. Raises :class:`InstallError`."""
    python = interpreter(peer, home)
    marker = home / peer / "installed.txt"
    if marker.is_file() and python.exists():
        return python
    venv.create(home / peer, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *PEERS[peer].requirements, *SHARED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own list
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise InstallError(f"{peer}: {lines[-1] if lines else 'pip failed'}")
    frozen = subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=True)  # noqa: S603
    marker.write_text(frozen.stdout)
    return python
