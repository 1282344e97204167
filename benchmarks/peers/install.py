"""``python -m benchmarks.peers install PEER``: a virtual environment for one peer."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

from benchmarks.peers.catalogue import PEERS, SHARED

HOME = Path(".tidegate") / "peers"
_VERSIONS = """
from importlib.metadata import distributions
names = {"fastapi", "uvicorn", "uvloop", "litserve", "bentoml", "mlserver", "ray", "onnxruntime", "tokenizers"}
print(*sorted({f"{d.name}=={d.version}" for d in distributions() if d.name.lower() in names}))
"""


class InstallError(Exception):
    """pip failed; the message is its last line."""


def interpreter(peer: str, home: Path = HOME) -> Path:
    """The Python of the peer's environment, which is made here or may have been made with pip beforehand."""
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


def versions(python: Path) -> list[str]:
    """``name==version`` of what decides a peer's speed, read from its environment; empty if it is not there."""
    found = subprocess.run([str(python), "-c", _VERSIONS], capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.split() if found.returncode == 0 else []
