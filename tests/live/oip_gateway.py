"""A gateway of its own in front of a Triton with small models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.live.oip_clients import Target
from tests.live.operators_key import bootstrap

ROOT = Path(__file__).parents[2]


class Gateway:
    """``tidegate serve`` in front of the Triton at ``triton``, with a key that has every scope. A context manager."""

    def __init__(self, folder: Path, models: Path, triton: str, poll: Callable[..., None]) -> None:
        self._ready, self._log, self._poll = folder / "ready.json", folder / "gateway.log", poll
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")} | {
            "TIDEGATE_DATA_DIR": str(folder / "data"), "TIDEGATE_PORT": "0", "TIDEGATE_GRPC_PORT": "0",
            "TIDEGATE_ADMIN_PORT": "0", "TIDEGATE_TRITON_URLS": triton, "TIDEGATE_MODEL_REPOSITORY": str(models),
        }  # fmt: skip

    def __enter__(self) -> Target:
        key = bootstrap(self._environment)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tidegate", "serve", "--ready-file", str(self._ready)],
                env=self._environment, cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._poll(lambda: self._ready.exists() or self._process.poll() is not None, 60, "the gateway's start")
            assert self._process.poll() is None, self._log.read_text()
            where = json.loads(self._ready.read_text())
            url = f"http://{where['http']}/v2/health/ready"
            self._poll(lambda: httpx.get(url).status_code == 200, 60, "the gateway's readiness")
        except BaseException:
            self._process.kill()
            raise
        return Target("gateway", where["http"], where["grpc"], {"authorization": f"Bearer {key}"})

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
