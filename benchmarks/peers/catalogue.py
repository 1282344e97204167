"""The peers: what to install, how to start, what they speak."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers.ways import Way, distinct, usual

SHARED = ("onnxruntime", "tokenizers", "pillow", "pyyaml", "numpy")
"""What :mod:`benchmarks.onnx_task` needs in every environment."""


@dataclass(slots=True, frozen=True)
class Peer:
    """A server that can be installed, started and loaded."""

    title: str
    requirements: tuple[str, ...]
    command: Callable[[Path, Path, int, Path, Way], list[str]]
    """Interpreter, model folder, port, scratch folder, way -> command line; ``PEER_MODEL`` holds the folder too."""
    ready: str = "/ready"
    """Path that answers 200 once the model is loaded; ``{model}`` is its name."""
    raw_images: bool = True
    """Whether pictures go as raw bytes; else in base64 inside JSON, as the peer's interface wants it."""
    lists: bool = False
    """Takes a list of inputs, here of one, and answers with a list."""
    v2: bool = False
    """Speaks the Open Inference Protocol with BYTES tensors in place of the task's JSON."""
    ways: Callable[[int], tuple[Way, ...]] = usual
    """What ``tune`` tries on so many cores; the first is the default."""
    guide: str = ""
    """The page that the configuration follows."""


def _module(name: str) -> Callable[[Path, Path, int, Path, Way], list[str]]:
    return lambda python, folder, port, _scratch, _way: [
        str(python),
        "-m",
        f"benchmarks.peers.{name}",
        str(folder),
        str(port),
    ]


def _bentoml(python: Path, _folder: Path, port: int, _scratch: Path, _way: Way) -> list[str]:
    return [
        str(python), "-m", "bentoml", "serve", "benchmarks.peers.bentoml_server:Task", "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip


def _mlserver(python: Path, folder: Path, port: int, scratch: Path, way: Way) -> list[str]:
    """Writes the two settings files that MLServer starts from."""
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2,
        "parallel_workers": way.workers if way.workers > 1 else 0,  # 0: in the server's own process
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


def _fastapi_ways(cores: int) -> tuple[Way, ...]:
    """The thread pool runs requests side by side, so a thread each may do."""
    return distinct(Way(1, 1), *usual(cores))


def _ray_ways(cores: int) -> tuple[Way, ...]:
    """The usual ones, with and without the switch that the performance guide recommends for throughput."""
    switch = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    return (*usual(cores), *(Way(way.workers, way.threads, switch) for way in usual(cores)))


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "fastapi": Peer(
            "FastAPI + ONNX Runtime", ("fastapi", "uvicorn[standard]"), _module("fastapi_server"), ways=_fastapi_ways,
            guide="https://fastapi.tiangolo.com/async/",
        ),
        "litserve": Peer(
            "LitServe", ("litserve",), _module("litserve_server"), raw_images=False,
            guide="https://lightning.ai/docs/litserve/features/batching",
        ),
        "bentoml": Peer(
            "BentoML", ("bentoml",), _bentoml, ready="/readyz", raw_images=False, lists=True,
            guide="https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
        ),
        "mlserver": Peer(
            "MLServer",
            ("mlserver", "uvloop<0.22"),  # its worker processes ask for an event loop as uvloop gave it until then
            _mlserver, ready="/v2/models/{model}/ready", raw_images=False, v2=True,
            guide="https://docs.seldon.ai/mlserver/user-guide/adaptive-batching",
        ),
        "ray": Peer(
            "Ray Serve", ("ray[serve]",), _module("ray_server"), ways=_ray_ways,
            guide="https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html",
        ),
    }
)  # fmt: skip
