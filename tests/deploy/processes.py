"""What a container would run, as a process on this machine: the same command line, other addresses and folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.conftest import DEPLOY

STOP_S = 30.0
BIN = str(Path(sys.executable).parent)


class Container:
    """A running service of the compose file."""

    def __init__(self, process: subprocess.Popen[bytes], environment: Mapping[str, str], log: Path) -> None:
        self._process = process
        self._environment = environment
        self._log = log

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def passes(self, check: Sequence[str]) -> bool:
        """Whether a health check of the compose file (``CMD`` or ``CMD-SHELL``) passes in its environment."""
        assert self._process.poll() is None, self.said
        kind, *rest = check
        command = ["sh", "-c", *rest] if kind == "CMD-SHELL" else rest
        done = subprocess.run(command, env=dict(self._environment), capture_output=True, timeout=60)
        return done.returncode == 0


@contextmanager
def container(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], replaced: Mapping[str, str]
) -> Iterator[Container]:
    """Run ``command`` in ``folder`` with nothing inherited but where programs are.

    ``replaced``: what stands for addresses and paths that only a container has, in arguments and in variables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(folder / "bin"), str(DEPLOY / "docker"), BIN, os.environ["PATH"]])
    variables = {name: replace(value, replaced) for name, value in environment.items()}
    variables = {"PATH": path, "HOME": str(folder), "PYTHONUNBUFFERED": "1", **variables}
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [replace(part, replaced) for part in command],
            cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield Container(process, variables, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def replace(text: str, replaced: Mapping[str, str]) -> str:
    """``text`` with every key of ``replaced`` exchanged, and Compose's ``$$`` resolved."""
    for old, new in {"$$": "$", **replaced}.items():
        text = text.replace(old, new)
    return text


def checked(service: Mapping[str, Any], replaced: Mapping[str, str]) -> list[str]:
    """The service's health check on this machine's addresses."""
    return [replace(part, replaced) for part in service["healthcheck"]["test"]]
