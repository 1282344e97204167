"""The system under test, started as an operator would start it: ``python -m tidegate up`` and friends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import end, spawn

START_S = 600.0
"""A first start builds the models that are missing."""
STOP_S = 45.0


class StackError(Exception):
    """The system under test did not start; the message holds the last lines it printed."""


@dataclass(slots=True, frozen=True)
class Addresses:
    """Where a stack listens."""

    gateway: str
    """``http://…``; empty for Triton alone."""
    gateway_grpc: str
    triton: str
    triton_grpc: str
    metrics: str
    key: str | None


class Stack:
    """A gateway and a Triton of its own on free ports, with a data folder that is removed afterwards.

    A context manager; entering raises :class:`StackError`.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        *,
        model_repository: Path = Path("model_repository"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._models = models
        self._repository = model_repository
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.addresses = Addresses("", "", "", "", "", None)
        self.started_in_s = 0.0

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of ``tidegate up``; its children are the parts."""
        return self._process.pid if self._process else 0

    @property
    def data_dir(self) -> Path:
        """The gateway's data folder. Raises :class:`StackError` before the start."""
        if self._folder is None:
            raise StackError("the stack has not been started")
        return self._folder / "data"

    def start(self) -> None:
        """Start and wait until everything is ready."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidegate-bench-"))
        ready = self._folder / "ready.json"
        command = [
            sys.executable, "-m", "tidegate", "up", "--no-dashboard", "--port", "0", "--grpc-port", "0",
            "--data-dir", str(self._folder / "data"), "--model-repository", str(self._repository),
            "--ready-file", str(ready),
        ]  # fmt: skip
        if self._models:
            command += ["--models", ",".join(self._models)]
        free = dict.fromkeys(("ADMIN", "TRITON_HTTP", "TRITON_GRPC", "TRITON_METRICS"), "0")
        environment = {**os.environ, **{f"TIDEGATE_{name}_PORT": port for name, port in free.items()}}
        environment["TIDEGATE_TRITON_STOP_S"] = "0"  # nobody waits for an answer once a run has ended
        began = time.monotonic()
        self._process = spawn(command, self._folder / "output.log", {**environment, **self._environment})
        try:
            self._wait(ready)
            self._read(ready)
        except BaseException:
            self.stop()
            raise
        self.started_in_s = time.monotonic() - began

    def _wait(self, ready: Path) -> None:
        assert self._process is not None and self._folder is not None  # noqa: S101, PT018 - set by start
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = (self._folder / "output.log").read_text(errors="replace").strip().splitlines()
                raise StackError(f"the stack did not start: {' / '.join(lines[-3:])}")
            time.sleep(0.1)

    def _read(self, ready: Path) -> None:
        where = json.loads(ready.read_text())
        triton = where.get("triton") or {}
        self.addresses = Addresses(
            gateway=where["gateway_url"],
            gateway_grpc=f"grpc://{where['grpc_address']}",
            triton=f"http://{triton.get('http', '')}",
            triton_grpc=f"grpc://{triton.get('grpc', '')}",
            metrics=where["metrics_url"],
            key=Path(where["key_file"]).read_text().strip(),
        )

    def stop(self) -> None:
        """End everything and remove the data folder. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            end(process, STOP_S)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
