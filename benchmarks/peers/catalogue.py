"""The peers: what to install, how to start, what they speak."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

SHARED = ("onnxruntime", "tokenizers", "pillow", "pyyaml", "numpy")
"""What :mod:`benchmarks.onnx_task` needs in every environment."""


@dataclass(slots=True, frozen=True)
class Peer:
    """A server that can be installed, started and loaded."""

    title: str
    requirements: tuple[str, ...]
    command: Callable[[Path, Path, int, Path], list[str]]
    """Interpreter, model folder, port, scratch folder -> command line; ``PEER_MODEL`` holds the folder too."""
    ready: str = "/ready"
    raw_images: bool = True
    """Whether pictures go as raw bytes; else in base64 inside JSON, as the peer's interface wants it."""
    v2: bool = False
    """Speaks the Open Inference Protocol with BYTES tensors in place of the task's JSON."""


def _module(name: str) -> Callable[[Path, Path, int, Path], list[str]]:
    return lambda python, folder, port, _scratch: [
        str(python),
        "-m",
        f"benchmarks.peers.{name}",
        str(folder),
        str(port),
    ]


def _bentoml(python: Path, _folder: Path, port: int, _scratch: Path) -> list[str]:
    return [
        str(python), "-m", "bentoml", "serve", "benchmarks.peers.bentoml_server:Task", "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip


def _mlserver(python: Path, folder: Path, port: int, scratch: Path) -> list[str]:
    """Writes the two settings files that MLServer starts from."""
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2,
        "parallel_workers": 0,
    }  # fmt: skip
    model = {
        "name": folder.name,
        "implementation": "benchmarks.peers.mlserver_runtime.TaskRuntime",
        "max_batch_size": 32,
        "max_batch_time": 0.005,
    }
    (scratch / "settings.json").write_text(json.dumps(settings))
    (scratch / "model-settings.json").write_text(json.dumps(model))
    return [str(python.parent / "mlserver"), "start", str(scratch)]


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "fastapi": Peer("FastAPI + ONNX Runtime", ("fastapi", "uvicorn[standard]"), _module("fastapi_server")),
        "litserve": Peer("LitServe", ("litserve",), _module("litserve_server"), raw_images=False),
        "bentoml": Peer("BentoML", ("bentoml",), _bentoml, ready="/readyz", raw_images=False),
        "mlserver": Peer("MLServer", ("mlserver",), _mlserver, ready="/v2/health/ready", raw_images=False, v2=True),
        "ray": Peer("Ray Serve", ("ray[serve]",), _module("ray_server")),
    }
)
