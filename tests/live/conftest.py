"""One running stack for all live tests: ``tidegate up`` as a user starts it, on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_S = 600.0  # a clean clone builds its models first


@dataclass
class Stack:
    """Where the parts of the running stack are."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log_file: Path
    gateway_url: str
    grpc_address: str
    metrics_url: str
    dashboard_url: str | None
    triton: dict[str, str]
    models: list[str]
    key: str = field(repr=False)
    environment: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """The demo key as a header."""
        return {"authorization": f"Bearer {self.key}"}  # lower case: gRPC takes no other

    def tidegate(self, *arguments: str) -> str:
        """Output of the ``tidegate`` command run on this stack's data. Fails if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "tidegate", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_key(self, *arguments: str) -> str:
        """A new key of the project ``tests``."""
        return str(json.loads(self.tidegate("keys", "create", "--project", "tests", "--json", *arguments))["key"])


def start_stack(data_dir: Path, *arguments: str, poll: Callable[..., None], **environment: str) -> Stack:
    """Run ``tidegate up`` on free ports and wait until it is ready."""
    ready, log_file = data_dir / "ready.json", data_dir / "up.log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    variables |= {
        "TIDEGATE_DATA_DIR": str(data_dir), "TIDEGATE_PORT": "0", "TIDEGATE_GRPC_PORT": "0", "TIDEGATE_ADMIN_PORT": "0",
        "TIDEGATE_DASHBOARD_PORT": "0", "TIDEGATE_TRITON_HTTP_PORT": "0", "TIDEGATE_TRITON_GRPC_PORT": "0",
        "TIDEGATE_TRITON_METRICS_PORT": "0", "TIDEGATE_TRITON_STOP_S": "0",
    }  # fmt: skip
    variables |= environment
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "up", "--ready-file", str(ready), *arguments],
            env=variables, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    poll(lambda: ready.exists() or process.poll() is not None, START_S, "the stack's start")
    assert process.poll() is None, log_file.read_text()
    where: dict[str, Any] = json.loads(ready.read_text())
    return Stack(
        process=process, data_dir=data_dir, log_file=log_file, gateway_url=where["gateway_url"],
        grpc_address=where["grpc_address"], metrics_url=where["metrics_url"], dashboard_url=where["dashboard_url"],
        triton=where["triton"], models=where["models"], key=Path(where["key_file"]).read_text().strip(),
        environment=variables,
    )  # fmt: skip


def stop_stack(stack: Stack) -> None:
    """Ctrl-C, and wait for its end."""
    if stack.process.poll() is None:
        stack.process.send_signal(signal.SIGINT)
        try:
            stack.process.wait(90)
        except subprocess.TimeoutExpired:
            stack.process.kill()  # what it started ends with it
            stack.process.wait()
            raise


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, poll: Callable[..., None]) -> Iterator[Stack]:
    """The stack that all live tests share, with every starter model and the dashboard."""
    running = start_stack(tmp_path_factory.mktemp("stack"), poll=poll)
    try:
        yield running
    finally:
        stop_stack(running)


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client with the demo key."""
    with httpx.Client(base_url=stack.gateway_url, headers=stack.headers, timeout=60.0) as opened:
        yield opened
