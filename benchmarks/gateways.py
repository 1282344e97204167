"""Further gateways before a Triton that runs: the same program with other settings, to be compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.children import end, spawn
from benchmarks.stack import StackError

START_S = 120.0
STOP_S = 45.0


class ServedGateway:
    """``tidegate serve`` on free ports with a data folder and a key of its own.

    A context manager; entering raises :class:`~benchmarks.stack.StackError`.
    """

    def __init__(
        self, triton: str, models: str, *, model_repository: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """``triton`` as ``TIDEGATE_TRITON_URLS`` has it: ``host:grpc_port/http_port`` infers over HTTP."""
        self._folder = Path(tempfile.mkdtemp(prefix="tidegate-bench-"))
        self._environment = {
            **os.environ,
            "TIDEGATE_TRITON_URLS": triton,
            "TIDEGATE_MODELS": models,
            "TIDEGATE_MODEL_REPOSITORY": str(model_repository),
            "TIDEGATE_DATA_DIR": str(self._folder / "data"),
            **dict.fromkeys(("TIDEGATE_PORT", "TIDEGATE_GRPC_PORT", "TIDEGATE_ADMIN_PORT"), "0"),
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.url = self.grpc_url = self.key = ""

    def __enter__(self) -> ServedGateway:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End it and remove its folder. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            end(process, STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        command = [sys.executable, "-m", "tidegate"]
        made = subprocess.run(  # noqa: S603 - our own program
            [*command, "keys", "create", "--project", "bench", "--json"],
            env=self._environment, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        if made.returncode:
            raise StackError(f"no key could be made: {made.stderr.strip()}")
        self.key = str(json.loads(made.stdout)["key"])
        ready, log = self._folder / "ready.json", self._folder / "output.log"
        self._process = spawn([*command, "serve", "--ready-file", str(ready)], log, self._environment)
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise StackError(f"a gateway did not start: {' / '.join(lines[-3:])}")
            time.sleep(0.1)
        where = json.loads(ready.read_text())
        self.url, self.grpc_url = f"http://{where['http']}", f"grpc://{where['grpc']}"
