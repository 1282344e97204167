"""The peers: what to install, how to start, what they speak."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers.ways import BATCH, WAIT_MS, Way, batches, distinct, spread

Stage = Callable[[Way, int], tuple[Way, ...]]
"""One step of ``tune``: the best way so far, cores -> ways to try against it."""
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
    form: bool = False
    """Pictures are uploaded as a form's file; else they are the body."""
    lists: bool = False
    """Takes a list of inputs, here of one, and answers with a list."""
    v2: bool = False
    """Speaks the Open Inference Protocol with BYTES tensors in place of the task's JSON; pictures are in base64."""
    batch: int = BATCH
    wait_ms: float = WAIT_MS
    """Where ``tune`` begins; see :class:`~benchmarks.peers.ways.Way`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Switches that the guide recommends for throughput."""
    stages: tuple[Stage, ...] = (spread, batches)
    """What ``tune`` tries, one after the other."""
    guide: str = ""
    """The page that the configuration follows."""

    def start(self) -> Way:
        """What ``tune`` begins with, and what an untuned peer is started with."""
        return Way(os.cpu_count() or 1, 1, self.batch, self.wait_ms, dict(self.settings))


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
        "max_batch_size": way.batch if way.batch > 1 else 0,
        "max_batch_time": way.wait_s,
    }
    (scratch / "settings.json").write_text(json.dumps(settings))
    (scratch / "model-settings.json").write_text(json.dumps(model))
    return [str(python.parent / "mlserver"), "start", str(scratch)]


def _threaded(way: Way, cores: int) -> tuple[Way, ...]:
    """The thread pool runs requests side by side, so a thread each may do."""
    return distinct(*spread(way, cores), replace(way, workers=1, threads=1))


def _litserve_transport(way: Way, _cores: int) -> tuple[Way, ...]:
    """As many HTTP processes as workers, and the ZeroMQ queue that the guide has for many requests a second."""
    return tuple(
        replace(way, settings={**way.settings, **switch})
        for switch in ({"LITSERVE_API_SERVERS": str(way.workers)}, {"LITSERVE_FAST_QUEUE": "1"})
        if way.workers > 1 or "LITSERVE_API_SERVERS" not in switch
    )


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "fastapi": Peer(
            "FastAPI + ONNX Runtime", ("fastapi", "uvicorn[standard]"), _module("fastapi_server"),
            batch=1, stages=(_threaded,),
            guide="https://fastapi.tiangolo.com/async/",
        ),
        "litserve": Peer(
            "LitServe", ("litserve", "python-multipart"), _module("litserve_server"), form=True,
            stages=(spread, batches, _litserve_transport),
            guide="https://lightning.ai/docs/litserve/features/batching",
        ),
        "bentoml": Peer(
            "BentoML", ("bentoml",), _bentoml, ready="/readyz", form=True, lists=True, wait_ms=250.0,
            guide="https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
        ),
        "mlserver": Peer(
            "MLServer",
            ("mlserver", "uvloop<0.22"),  # its worker processes ask for an event loop as uvloop gave it until then
            _mlserver, ready="/v2/models/{model}/ready", v2=True,
            guide="https://docs.seldon.ai/mlserver/user-guide/adaptive-batching",
        ),
        "ray": Peer(
            "Ray Serve", ("ray[serve]",), _module("ray_server"), settings={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
            guide="https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html",
        ),
    }
)  # fmt: skip
