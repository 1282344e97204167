"""Where ``tritonserver`` lies in the wheel, and the folder of backends that it is started with."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedded.errors import EmbeddedTritonError, UnsupportedPythonError, WheelNotFoundError

PACKAGE = "pytriton"
INSTALL_HINT = "pip install 'tidegate[embedded]' brings the wheel nvidia-pytriton with it"
PYTHON_BASED_BACKENDS = ("onnxruntime", "pytorch")
STUB = "triton_python_backend_stub"
UNQUOTED = re.compile(r"""[\s"'`$&;|<>(){}*?#~\\]""")
"""What a shell does not take as it stands."""


@dataclass(frozen=True)
class TritonWheel:
    """Paths inside the installed wheel; all of them exist."""

    server: Path
    libraries: Path
    python_backend: Path
    caches: Path
    stub: Path


@dataclass(frozen=True)
class Layout:
    """What the server is started with."""

    backends: Path
    """Triton's ``--backend-directory``."""
    working_folder: Path
    """Where the server runs. The stub's Python ignores ``PYTHONPATH`` and looks into its working folder first, so a
    link to the ``embedded`` package is there, and nothing else."""


def find_wheel(search: Sequence[Path] | None = None, python_version: tuple[int, int] | None = None) -> TritonWheel:
    """Find the wheel's parts without importing its Python API.

    ``search``: folders that may hold the package (default: where Python would import it from).
    ``python_version``: whose stub is wanted (default: the running Python's).
    Raises :class:`WheelNotFoundError`, :class:`UnsupportedPythonError`.
    """
    package = _package_folder(search)
    version = _version(python_version)
    root = package / "tritonserver"
    stubs = root / "python_backend_stubs"
    wheel = TritonWheel(
        server=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        caches=root / "caches",
        stub=stubs / version / STUB,
    )
    for path in (wheel.server, wheel.libraries, wheel.python_backend, wheel.caches, stubs):
        if not path.exists():
            raise WheelNotFoundError(f"the wheel nvidia-pytriton is incomplete: {path} is missing; {INSTALL_HINT}")
    if not wheel.stub.exists():
        known = ", ".join(sorted((stub.parent.name for stub in stubs.glob(f"*/{STUB}")), key=_version_key))
        raise UnsupportedPythonError(f"Triton's Python backend has no stub for Python {version}, only for {known}")
    return wheel


def _package_folder(search: Sequence[Path] | None) -> Path:
    if search is None:
        spec = importlib.util.find_spec(PACKAGE)
        candidates = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    else:
        candidates = [folder / PACKAGE for folder in search]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise WheelNotFoundError(f"no Triton server is installed; {INSTALL_HINT}")


def _version(wanted: tuple[int, int] | None) -> str:
    return ".".join(str(part) for part in (wanted or sys.version_info[:2]))


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def check_folder(folder: Path) -> None:
    """Raise :class:`EmbeddedTritonError` for a path that Triton cannot start its stubs with.

    Its Python backend hands the paths of stub and model to a shell, unquoted, and waits for a stub that never starts.
    """
    unfit = UNQUOTED.search(str(folder))
    if unfit is not None:
        raise EmbeddedTritonError(f"{folder}: Triton takes no folder with {unfit[0]!r} in its path")


def lay_out(wheel: TritonWheel, folder: Path) -> Layout:
    """Make ``folder`` into a backend directory: the wheel's Python backend, the stub, and our backends (5 MiB).

    They are copies, as Triton refuses a backend that is a link out of its directory. What an earlier start left there
    is replaced, so that an upgraded wheel or package is used at once.
    """
    backends = folder / "backends"
    working_folder = folder / "run"
    for stale in (backends, working_folder):
        shutil.rmtree(stale, ignore_errors=True)
    python = backends / "python"
    python.mkdir(parents=True)
    for part in wheel.python_backend.iterdir():
        if part.is_file():
            shutil.copy2(part, python / part.name)
    shutil.copy2(wheel.stub, python / STUB)
    package = Path(__file__).resolve().parent
    for name in PYTHON_BASED_BACKENDS:
        (backends / name).mkdir()
        shutil.copy2(package / "backends" / name / "model.py", backends / name / "model.py")
    working_folder.mkdir()
    (working_folder / package.name).symlink_to(package)
    return Layout(backends=backends, working_folder=working_folder)


def server_environment(
    wheel: TritonWheel, inherited: dict[str, str], python_version: tuple[int, int] | None = None
) -> dict[str, str]:
    """Environment of the server: ``inherited`` with the wheel's libraries and this interpreter put first.

    The stub embeds Python: it finds the virtual environment through ``python3`` on ``PATH`` and ``libpython``
    through the loader. ``python_version``: whose library is wanted (default: the running Python's).
    Raises :class:`UnsupportedPythonError` where there is no shared ``libpython``.
    """
    libraries = [str(wheel.libraries)]
    own_library = _python_library_folder(_version(python_version))
    if own_library is not None:
        libraries.insert(0, str(own_library))
    environment = {name: value for name, value in inherited.items() if name != "PYTHONHOME"}
    environment["LD_LIBRARY_PATH"] = _joined(libraries, inherited.get("LD_LIBRARY_PATH"))
    environment["PATH"] = _joined([str(Path(sys.executable).parent)], inherited.get("PATH", os.defpath))
    environment["PYTHONUNBUFFERED"] = "1"  # what a backend prints stands in the log at once
    return environment


def _joined(first: Sequence[str], rest: str | None) -> str:
    return os.pathsep.join([*first, *([rest] if rest else [])])


def _python_library_folder(version: str) -> Path | None:
    """Folder of that Python's ``libpython`` (``None``: the loader finds it by itself)."""
    soname = f"libpython{version}.so.1.0"
    prefixes = (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib"))
    for folder in (Path(prefix) for prefix in prefixes if prefix):
        if (folder / soname).exists():
            return folder
    if ctypes.util.find_library(f"python{version}") is None:
        raise UnsupportedPythonError(
            f"Python {version} at {sys.executable} has no shared library {soname}, which Triton's stub needs "
            f"(Debian and Ubuntu: apt-get install libpython{version})"
        )
    return None
