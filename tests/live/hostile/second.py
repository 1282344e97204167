"""Another gateway beside the shared stack's, where a case needs settings or an upstream of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway.settings import Settings
from tests.live.hostile.invariants import ROOT, Gateway, Invariants
from tidegate.demo_key import ensure_demo_key

START_S = 60.0


@dataclass
class Second:
    """A running ``tidegate serve``."""

    invariants: Invariants
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    @property
    def gateway(self) -> Gateway:
        """Where it is."""
        return self.invariants.gateway

    def make_key(self, *arguments: str) -> str:
        """A new key of the project ``tests``."""
        done = subprocess.run(
            [sys.executable, "-m", "tidegate", "keys", "create", "--project", "tests", "--json", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
        )  # fmt: skip
        return str(json.loads(done.stdout)["key"])


@contextmanager
def second_gateway(
    data_dir: Path,
    triton: str,
    *,
    files: int | None = None,
    models: str = "identity",
    ready: bool = True,
    **settings: object,
) -> Iterator[Second]:
    """``tidegate serve`` in front of ``triton`` (its gRPC address) until the block ends.

    ``settings`` are ``TIDEGATE_*`` in lower case; ``files``: how many files it may have open; ``ready``: wait for that.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    key_file = data_dir / "demo.key"
    ensure_demo_key(Settings(data_dir=data_dir), key_file)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    environment |= {"TIDEGATE_DATA_DIR": str(data_dir)}
    environment |= {f"TIDEGATE_{name.upper()}": str(value) for name, value in settings.items()}
    ready_file, log_file = data_dir / "ready.json", data_dir / "serve.log"
    command = [
        sys.executable, "-X", "faulthandler", "-m", "tidegate", "serve",
        "--port", "0", "--grpc-port", "0", "--admin-port", "0", "--triton", triton, "--models", models,
        "--ready-file", str(ready_file),
    ]  # fmt: skip

    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
    if files is not None:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files, files))
    try:
        _wait(lambda: ready_file.exists() or process.poll() is not None)
        assert process.poll() is None, log_file.read_text()
        where = json.loads(ready_file.read_text())
        key = key_file.read_text().strip()
        gateway = Gateway(
            url=f"http://{where['http']}", grpc_address=where["grpc"], metrics_url=f"http://{where['admin']}/metrics",
            log_file=log_file, key=key, private=(str(data_dir), triton),
        )  # fmt: skip
        if ready:
            _wait(lambda: httpx.get(f"{gateway.url}/healthz/ready").status_code == 200)
        invariants = Invariants(gateway)
        try:
            yield Second(invariants, process, environment)
        finally:
            invariants.close()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # the log gets every thread's stack
            process.wait()
    assert process.returncode == 0, log_file.read_text()


def _wait(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, "the second gateway did not start"
        time.sleep(0.05)
