"""``make run`` before Tidegate itself is there: which Python is taken, and what pip shows."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make") or "make"
FAKE = """#!/bin/sh
case "$*" in
  "-m pip "*) echo "$*" >> {log} ;;
  *ensurepip*) exit {ensurepip} ;;
  *python%d.%d-venv*) echo python3.11-venv ;;
  *sys.exit*) exit {fits} ;;
  *version*) echo {version} ;;
esac
"""


def fake(path: Path, version: str, *, ensurepip: bool = True) -> Path:
    """A program that answers as that Python does, and writes down what pip is asked."""
    fits = version.startswith(("3.10.", "3.11.", "3.12."))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        FAKE.format(version=version, fits=int(not fits), ensurepip=int(not ensurepip), log=path.parent / "pip.log")
    )
    path.chmod(0o755)
    return path


def find(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``scripts/find-python.sh`` where only the programs of ``folder`` are installed."""
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "find-python.sh"), *arguments],
        env={"PATH": str(folder)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def run(venv: Path, **options: int) -> subprocess.CompletedProcess[str]:
    """``make run`` with the environment ``venv``, as from a shell: these tests may run below ``make test``."""
    above = {"MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "GNUMAKEFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in above}
    return subprocess.run(
        [MAKE, "--no-print-directory", "run", f"VENV={venv}"], cwd=ROOT, text=True, timeout=60, env=environment,
        stderr=subprocess.PIPE, **({"stdout": subprocess.PIPE} | options),
    )  # fmt: skip


@pytest.mark.parametrize("version", ["3.9.19", "3.13.1", "4.0.0"])
def test_a_python_that_does_not_fit_is_one_line(tmp_path: Path, version: str) -> None:
    fake(tmp_path / "python3", version)
    for arguments in ((), ("python3",)):
        done = find(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: Tidegate needs Python 3.10 to 3.12, found: {version} ")


def test_no_python_at_all_is_one_line(tmp_path: Path) -> None:
    (line,) = find(tmp_path).stderr.splitlines()
    assert "found: none" in line


def test_the_first_python_that_fits_is_taken(tmp_path: Path) -> None:
    fake(tmp_path / "python3.11", "3.11.9", ensurepip=False)
    (line,) = find(tmp_path).stderr.splitlines()
    assert line == ("error: python3.11 cannot make an environment (Debian and Ubuntu: apt-get install python3.11-venv)")
    second = fake(tmp_path / "python3.12", "3.12.3")
    fake(tmp_path / "python3", "3.13.0")
    assert find(tmp_path).stdout.strip() == str(second)
    assert find(ROOT, sys.executable).stdout.strip() == sys.executable


@pytest.mark.parametrize("version", ["3.9.19", "3.13.1"])
def test_an_environment_of_another_python_is_one_line(tmp_path: Path, version: str) -> None:
    fake(tmp_path / "bin" / "python", version)
    for stamp in (False, True):
        if stamp:
            (tmp_path / ".run").touch()
        done = run(tmp_path)
        assert done.returncode != 0
        assert done.stdout == ""
        first, *rest = done.stderr.splitlines()
        assert first.startswith(f"error: {tmp_path} is of Python {version}, and Tidegate needs 3.10 to 3.12: ")
        assert all(line.startswith("make: ") for line in rest)
    assert not (tmp_path / "bin" / "pip.log").exists()


def test_pip_shows_its_progress_on_a_terminal_alone(tmp_path: Path) -> None:
    fake(tmp_path / "bin" / "python", "3.11.9")
    (tmp_path / "bin" / "tidegate").symlink_to("/bin/true")
    assert run(tmp_path).returncode == 0
    (tmp_path / ".run").unlink()
    ours, theirs = pty.openpty()
    try:
        assert run(tmp_path, stdout=theirs).returncode == 0
    finally:
        os.close(theirs)
        os.close(ours)
    piped, shown = (tmp_path / "bin" / "pip.log").read_text().splitlines()
    assert "-m pip install --quiet " in piped
    assert shown == piped.replace(" --quiet", "")
