"""``python -m benchmarks.peers install PEER``: a virtual environment for one peer, with the versions of its lock.

``requirements/PEER.txt`` holds every version that the published comparison ran with. ``--latest`` installs what is
newest and writes the lock anew; another Python than the lock's may need that.
"""

from __future__ import annotations

import platform
import subprocess
import venv
from pathlib import Path

from benchmarks.peers.catalogue import PEERS, SHARED

HOME = Path(".tidegate") / "peers"
LOCKS = Path(__file__).with_name("requirements")
_VERSIONS = """
from importlib.metadata import distributions
names = {
    "fastapi", "uvicorn", "uvloop", "litserve", "bentoml", "mlserver", "ray", "onnxruntime", "tokenizers", "pillow",
    "numpy",
}
print(*sorted({f"{d.name}=={d.version}" for d in distributions() if d.name.lower() in names}))
"""


class InstallError(Exception):
    """pip failed; the message is its last line."""


def interpreter(peer: str, home: Path = HOME) -> Path:
    """The Python of the peer's environment, which is made here or may have been made with pip beforehand."""
    return (home / peer / "bin" / "python").absolute()


def lock(peer: str) -> Path:
    """The file with all versions of the peer's environment."""
    return LOCKS / f"{peer}.txt"


def install(peer: str, home: Path = HOME, *, latest: bool = False) -> Path:
    """Make the environment if it is not as the lock has it; returns its Python. Raises :class:`InstallError`.

    ``latest``: the newest versions, which become the lock.
    """
    python = interpreter(peer, home)
    marker = home / peer / "installed.txt"
    wanted = "" if latest else lock(peer).read_text()
    if wanted and python.exists() and marker.is_file() and marker.read_text() == wanted:
        return python
    venv.create(home / peer, with_pip=True, clear=True)
    what = [*PEERS[peer].requirements, *SHARED] if latest else ["--requirement", str(lock(peer))]
    command = [str(python), "-m", "pip", "install", "--quiet", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own list
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise InstallError(f"{peer}: {lines[-1] if lines else 'pip failed'}")
    if latest:
        wanted = frozen(peer, python)
        lock(peer).write_text(wanted)
    marker.write_text(wanted)
    return python


def frozen(peer: str, python: Path) -> str:
    """The text of a lock: everything that is installed beside ``python``."""
    found = subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=True)  # noqa: S603
    head = f"# python -m benchmarks.peers install {peer} --latest (Python {platform.python_version()})\n"
    return head + found.stdout


def versions(python: Path) -> list[str]:
    """``name==version`` of what decides a peer's speed, read from its environment; empty if it is not there."""
    if not python.exists():
        return []
    found = subprocess.run([str(python), "-c", _VERSIONS], capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.split() if found.returncode == 0 else []
