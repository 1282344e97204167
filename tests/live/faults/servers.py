"""What faults are done to: Tritons with the model ``recorder``, and ``tidegate serve`` before them, as processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import tokenizers
import tokenizers.models
import tokenizers.pre_tokenizers
import yaml

from embedded.launcher import EmbeddedTriton
from tests.live.operators_key import bootstrap

ROOT = Path(__file__).parents[3]
Poll = Callable[..., None]

_RECIPE: dict[str, Any] = {
    "title": "Recorder", "description": "Writes down what it executes.", "architecture": "none", "format": "onnx",
    "source": {"kind": "builtin", "name": "recorder"}, "licence": "Apache-2.0",
    "inputs": [{"name": "INPUT", "datatype": "FP64", "shape": [2]}],
    "outputs": [{"name": "OUTPUT", "datatype": "FP64", "shape": [1]}],
}  # fmt: skip
_CARD: dict[str, Any] = {
    "built_at": "2026-01-01T00:00:00Z", "build_seconds": 0, "model_file": "1/model.onnx", "model_bytes": 0,
    "model_sha256": "", "recipe_sha256": "", "parity_max_abs_error": 0, "parity_cases": 0, "golden_passed": 0,
    "versions": {},
}  # fmt: skip


POLICY = "default_queue_policy { default_timeout_microseconds: 600000000 allow_timeout_override: true }"
"""With it Triton does not execute what has waited longer than its own ``timeout``."""


def write_recorder(
    repository: Path, name: str = "recorder", max_batch_size: int = 16, width: int = 2, policy: str = ""
) -> Path:
    """The folder of a model ``name`` that Triton's own Python backend runs; written again, it takes something else."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    batching = f"dynamic_batching {{ {policy} }}" if max_batch_size else ""
    dims = (f"[ {width} ]", "[ 1 ]") if max_batch_size else (f"[ -1, {width} ]", "[ -1, 1 ]")
    (folder / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: {max_batch_size}\n'
        f'input {{ name: "INPUT" data_type: TYPE_FP64 dims: {dims[0]} }}\n'
        f'output {{ name: "OUTPUT" data_type: TYPE_FP64 dims: {dims[1]} }}\n'
        f"instance_group {{ count: 1 kind: KIND_CPU }}\n{batching}\n"
    )
    shutil.copy(Path(__file__).with_name("recorder.py"), folder / "1" / "model.py")
    (folder / "1" / "model.onnx").touch()  # what the card names
    recipe = _RECIPE | {"name": name, "max_batch_size": max_batch_size}
    (folder / "model.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "card.json").write_text(json.dumps(_CARD))
    return folder


def write_matmul(repository: Path, *, layers: int = 800, width: int = 1024, max_batch_size: int = 4) -> None:
    """A model ``matmul`` without a recipe, that keeps one core busy: OUTPUT is the first value of INPUT."""
    folder = repository / "matmul"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        _busy_config(max_batch_size, 'name: "INPUT" data_type: TYPE_FP32 dims: [ 4 ]')
        + 'output { name: "OUTPUT" data_type: TYPE_FP32 dims: [ 1 ] }\n'
    )
    inputs = [onnx.helper.make_tensor_value_info("INPUT", onnx.TensorProto.FLOAT, ["batch", 4])]
    _save_busy(folder, inputs, [], np.eye(4, width), np.eye(width, 1), layers)


def write_opinion(repository: Path, *, layers: int = 400, width: int = 1024, max_batch_size: int = 4) -> None:
    """A model ``opinion`` for text classification, that keeps one core busy: its logits are a fiftieth of the first
    token's id, and 0; the words ``w1`` to ``w99`` are their numbers.
    """
    folder = repository / "opinion"
    (folder / "1").mkdir(parents=True)
    ids = ("input_ids", "attention_mask")
    (folder / "config.pbtxt").write_text(
        _busy_config(max_batch_size, *(f'name: "{name}" data_type: TYPE_INT64 dims: [ -1 ]' for name in ids))
        + 'output { name: "logits" data_type: TYPE_FP32 dims: [ 2 ] }\n'
    )
    recipe = _RECIPE | {
        "name": "opinion", "task": "text-classification", "labels": ["yes", "no"], "max_batch_size": max_batch_size,
        "inputs": [{"name": name, "datatype": "INT64", "shape": [-1]} for name in ids],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}],
        "preprocessing": {"kind": "text", "max_length": 16, "buckets": [16]},
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "card.json").write_text(json.dumps(_CARD))
    (folder / "labels.txt").write_text("yes\nno\n")
    words = {"[PAD]": 0} | {f"w{number}": number for number in range(1, 100)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    helper = onnx.helper
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"]) for name in ids]
    first = [
        helper.make_node("Mul", [*ids], ["tokens"]),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Slice", ["tokens", "zero", "one", "one"], ["token"]),  # of the second axis
        helper.make_node("Cast", ["token"], ["INPUT"], to=onnx.TensorProto.FLOAT),
    ]
    _save_busy(folder, inputs, first, np.eye(1, width), np.eye(width, 2)[:, :2] * [0.02, 0], layers, "logits", 2)


def _busy_config(max_batch_size: int, *inputs: str) -> str:
    """Of a model that keeps one core busy, but for its outputs."""
    return (
        f'backend: "onnxruntime"\ndefault_model_filename: "model.onnx"\nmax_batch_size: {max_batch_size}\n'
        + "".join(f"input {{ {spec} }}\n" for spec in inputs)
        + "instance_group { count: 1 kind: KIND_CPU }\ndynamic_batching { }\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )


def _save_busy(
    folder: Path,
    inputs: list[onnx.ValueInfoProto],
    nodes: list[onnx.NodeProto],
    first: np.ndarray,
    last: np.ndarray,
    layers: int,
    output: str = "OUTPUT",
    columns: int = 1,
) -> None:
    """``nodes`` make ``INPUT``; it is multiplied by ``first``, then ``layers`` times by 1, and by ``last``."""
    helper, numpy_helper, width = onnx.helper, onnx.numpy_helper, first.shape[1]
    weights = [
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in (("IN", first), ("W", np.eye(width)), ("OUT", last))
    ]
    nodes = [*nodes, helper.make_node("MatMul", ["INPUT", "IN"], ["x0"])]
    nodes += [helper.make_node("MatMul", [f"x{i}", "W"], [f"x{i + 1}"]) for i in range(layers)]
    nodes.append(helper.make_node("MatMul", [f"x{layers}", "OUT"], [output]))
    outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", columns])]
    graph = helper.make_graph(nodes, folder.name, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "1" / "model.onnx"))


def write_drip(repository: Path) -> None:
    """A model ``drip`` without a recipe that answers in parts."""
    folder = repository / "drip"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 0\n'
        'input { name: "INPUT" data_type: TYPE_FP64 dims: [ 2 ] }\n'
        'output { name: "OUTPUT" data_type: TYPE_FP64 dims: [ 1 ] }\n'
        "instance_group { count: 1 kind: KIND_CPU }\nmodel_transaction_policy { decoupled: true }\n"
    )
    shutil.copy(Path(__file__).with_name("drip.py"), folder / "1" / "model.py")


class RecordingTriton(EmbeddedTriton):
    """A Triton whose models write what they execute to ``record``."""

    def __init__(self, repository: Path, folder: Path, collector: str, models: tuple[str, ...] = ("recorder",)) -> None:
        """``collector`` is the URL that spans of requests with a trace context, and of no others, are sent to."""
        self.record = folder / "executed"
        trace = ("mode=opentelemetry", "rate=0", "level=TIMESTAMPS", f"opentelemetry,url={collector}")
        super().__init__(
            repository, folder / "triton", models, 0, 0, 0, environment={"RECORDER_FILE": str(self.record)},
            extra_arguments=["--disable-auto-complete-config", *(f"--trace-config={option}" for option in trace)],
        )  # fmt: skip  # complete configurations need no second stub of each model

    def executed(self) -> Counter[int]:
        """How often each number was executed here."""
        return Counter(map(int, self.record.read_text().split())) if self.record.exists() else Counter()

    def kill(self) -> None:
        """SIGKILL."""
        pid = self.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def revive(self, poll: Poll) -> None:
        """Start it again after :meth:`kill`, on the same ports."""
        poll(lambda: self.poll() is not None, 30, "Triton's end")
        poll(self.ensure_running, 60, "Triton's restart")

    def freeze(self) -> None:
        """SIGSTOP: its port still takes connections, and nobody answers."""
        pid = self.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        pid = self.pid
        assert pid is not None
        os.kill(pid, signal.SIGCONT)


class GatewayProcess:
    """``tidegate serve`` on free ports with its own data folder, and the operator's key."""

    def __init__(
        self, folder: Path, repository: Path, tritons: str, poll: Poll, inside: tuple[str, ...] = (), **settings: str
    ) -> None:
        """``inside``: a command that runs it in surroundings of its own."""
        self.folder = folder
        self._poll = poll
        self._inside = inside
        self._ready_file = folder / "gateway.json"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        self.environment |= {
            "TIDEGATE_DATA_DIR": str(folder / "data"), "TIDEGATE_MODEL_REPOSITORY": str(repository),
            "TIDEGATE_PORT": "0", "TIDEGATE_GRPC_PORT": "0", "TIDEGATE_ADMIN_PORT": "0",
            "TIDEGATE_TRITON_URLS": tritons,
        }  # fmt: skip
        self.environment |= {f"TIDEGATE_{name.upper()}": value for name, value in settings.items()}
        self.key = ""
        self.log_file = folder / "gateway.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = self.grpc_address = self.metrics_url = ""

    def bootstrap(self) -> GatewayProcess:
        """Make the operator's key in its database."""
        self.key = bootstrap(self.environment)
        return self

    def start(self) -> GatewayProcess:
        """Run it and wait until it listens."""
        self._ready_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, sys.executable, "-m", "tidegate", "serve", "--ready-file", str(self._ready_file)],
                env=self.environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        process = self._process
        self._poll(lambda: self._ready_file.exists() or process.poll() is not None, 60, "the gateway's start")
        assert process.poll() is None, self.log_file.read_text()
        where = json.loads(self._ready_file.read_text())
        self.url, self.grpc_address = f"http://{where['http']}", where["grpc"]
        self.metrics_url = f"http://{where['admin']}/metrics"
        return self

    def make_key(self, project: str, **fields: Any) -> str:
        """A key with the scope ``infer`` of a project, which is made if it is not there."""
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=30) as client:
            made = client.post("/admin/projects", json={"name": project})
            assert made.status_code in {201, 409}, made.text
            issued = client.post("/admin/keys", json={"project": project, **fields})
            assert issued.status_code == 201, issued.text
            return str(issued.json()["key"])

    @property
    def headers(self) -> dict[str, str]:
        """The operator's key as a header."""
        return {"authorization": f"Bearer {self.key}"}

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None
        return self._process

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        process = self.process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        return int(process.returncode)

    def usage(self) -> dict[str, tuple[str, int, int]]:
        """What the usage table holds: state, status and pico-USD billed, by usage id."""
        return {
            row[0]: row[1:] for row in self.query("SELECT usage_id, state, status, billed_pico_usd FROM usage_records")
        }

    def ended(self) -> dict[str, tuple[str, int, int]]:
        """The same of calls that are over: a record may be in the table as ``reserved`` for a moment before."""
        return {usage_id: row for usage_id, row in self.usage().items() if row[0] != "reserved"}

    def metric(self, name: str) -> float:
        """A sample of ``/metrics``, by its name and labels as they are written there; 0 if it is not there."""
        for line in httpx.get(self.metrics_url, timeout=10).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == name:
                return float(value)
        return 0.0

    def audit(self, action: str) -> list[tuple[str, str, str]]:
        """Actor, object and result of every audit record of ``action``, oldest first."""
        return self.query("SELECT actor, object, result FROM audit_records WHERE action = ? ORDER BY sequence", action)

    def query(self, text: str, *values: Any) -> list[Any]:
        """Rows of its SQLite database."""
        path = Path(self.environment["TIDEGATE_DATA_DIR"]) / "tidegate.db"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(text, values).fetchall()
        finally:
            connection.close()
