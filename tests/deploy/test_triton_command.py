"""The command line that the compose file gives to Triton, run by the Triton that is here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded.layout import find_wheel, lay_out, server_environment
from tests.deploy.conftest import ROOT
from tests.deploy.metric_names import TRITON
from tidegate.processes import free_port

pytestmark = pytest.mark.live

START_S = 120.0
REPLACED = {"tritonserver", "--model-repository=/models"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model that works and one that cannot be loaded."""
    source = ROOT / "model_repository" / "identity"
    if not (source / "config.pbtxt").is_file():
        message = "the model identity is not built (tidegate models build identity)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path / "models"
    shutil.copytree(source, folder / "identity")
    with (folder / "identity" / "config.pbtxt").open("a", encoding="utf-8") as config:
        config.write("\nresponse_cache { enable: true }\n")  # so that the cache's metrics are there
    shutil.copytree(source, folder / "broken")
    (folder / "broken" / "config.pbtxt").write_text(
        (source / "config.pbtxt").read_text(encoding="utf-8").replace('"identity"', '"broken"'), encoding="utf-8"
    )
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"this is no model")
    return folder


@pytest.fixture
def triton(
    repository: Path, tmp_path: Path, compose: dict[str, Any], poll: Callable[..., None]
) -> Iterator[tuple[str, str]]:
    """URLs of its HTTP and metrics endpoints."""
    wheel = find_wheel()
    layout = lay_out(wheel, tmp_path / "triton")
    http, grpc, metrics = (free_port("127.0.0.1") for _ in range(3))
    given = [argument for argument in compose["services"]["triton"]["command"] if argument not in REPLACED]
    here = [
        f"--model-repository={repository}", f"--backend-directory={layout.backends}",
        f"--cache-directory={wheel.caches}",
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}",
    ]  # fmt: skip
    log = tmp_path / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(wheel.server), *given, *here], cwd=layout.working_folder,
            env=server_environment(wheel, dict(os.environ)), stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{http}"

    def answers() -> bool:
        if process.poll() is not None:
            return True
        try:
            return httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        poll(answers, START_S, "Triton's start")
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        yield url, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_triton_takes_the_command_and_serves_what_can_be_loaded(triton: tuple[str, str]) -> None:
    url, metrics_url = triton
    index = httpx.post(f"{url}/v2/repository/index", trust_env=False).json()
    assert {item["name"]: item["state"] for item in index} == {"identity": "READY", "broken": "UNAVAILABLE"}
    names = set(re.findall(r"^# TYPE (nv_\w+)", httpx.get(metrics_url, trust_env=False).text, re.M))
    on_a_gpu = {name for name in TRITON if name.startswith(("nv_gpu_", "nv_energy_", "nv_pinned_", "nv_model_"))}
    assert TRITON - on_a_gpu - names <= {"nv_model_load_duration_secs"}
