"""A model repository of small models, one for each thing that the backends must do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "STRING": TensorProto.STRING,
}
ALL_ONNX = tuple(name for name in ONNX_TYPES if name != "BF16")
ALL_TORCH = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64")
CORRUPT = b"this is no model file"

Tensor = tuple[str, str, Sequence[int]]  # name, Triton's dtype, dims without the batch dimension


class Repository:
    """Writes models below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_config(self, name: str, text: str) -> None:
        (self.folder / name / "1").mkdir(parents=True, exist_ok=True)
        (self.folder / name / "config.pbtxt").write_text(text)

    def onnx(
        self,
        name: str,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        max_batch_size: int = 8,
        extra: str = "",
        initializers: Sequence[onnx.TensorProto] = (),
        optional: Sequence[str] = (),
        ragged: bool = False,
        config: str | None = None,
        filename: str = "model.onnx",
    ) -> str:
        def values(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(
                    tensor, ONNX_TYPES[dtype], [*(["batch"] if max_batch_size else []), *_free(tensor, dims)]
                )
                for tensor, dtype, dims in tensors
            ]

        graph = helper.make_graph(list(nodes), name, values(inputs), values(outputs), list(initializers))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        described = describe("onnxruntime", inputs, outputs, max_batch_size, extra, optional, ragged=ragged)
        self.write_config(name, described if config is None else config)
        onnx.save(model, str(self.folder / name / "1" / filename))
        return name

    def torchscript(
        self,
        name: str,
        forward: torch.nn.Module,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        max_batch_size: int = 8,
        extra: str = "",
        optional: Sequence[str] = (),
        ragged: bool = False,
    ) -> str:
        self.write_config(name, describe("pytorch", inputs, outputs, max_batch_size, extra, optional, ragged=ragged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            torch.jit.save(torch.jit.script(forward), str(self.folder / name / "1" / "model.pt"))
        return name


def describe(
    backend: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    max_batch_size: int,
    extra: str = "",
    optional: Sequence[str] = (),
    *,
    ragged: bool = False,
) -> str:
    """``config.pbtxt`` as NVIDIA's container would take it; ``ragged``: a batch may hold inputs of several lengths."""

    def tensors(kind: str, entries: Sequence[Tensor]) -> str:
        return "\n".join(
            f'{kind} {{ name: "{name}" data_type: TYPE_{dtype} dims: {list(dims)}'
            f"{' optional: true' if name in optional else ''}"
            f"{' allow_ragged_batch: true' if ragged and kind == 'input' else ''} }}"
            for name, dtype, dims in entries
        )

    instances = "" if "instance_group" in extra else "instance_group { count: 1 kind: KIND_CPU }"
    return (
        f'backend: "{backend}"\nmax_batch_size: {max_batch_size}\n{tensors("input", inputs)}\n'
        f"{tensors('output', outputs)}\n{instances}\n{extra}\n"
    )


def _free(tensor: str, dims: Sequence[int]) -> list[int | str]:
    return [size if size >= 0 else f"{tensor}_{place}" for place, size in enumerate(dims)]


class AddSub(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left + right, left - right


class Shift(torch.nn.Module):
    def forward(self, x: torch.Tensor, by: torch.Tensor | None = None) -> torch.Tensor:
        if by is None:
            return x + 1.0
        return x + by


class Lookup(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(10, dtype=torch.float32) * 10, requires_grad=False)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return torch.index_select(self.table, 0, index.reshape(-1)).reshape(index.shape)


class Greet(torch.nn.Module):
    def forward(self, names: list[str]) -> list[str]:
        return ["hello " + name for name in names]


class Forget(torch.nn.Module):
    def forward(self, names: list[str]) -> list[str]:
        return names[1:]


class Negate(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


class Modes(torch.nn.Module):
    """For each row: whether gradients could be computed, and whether its tensors are of the inference mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        modes = torch.tensor([torch.is_grad_enabled(), (x + 1.0).is_inference()])
        return modes.expand(x.shape[0], 2)


class Parallel(torch.nn.Module):
    """An operator large enough for libtorch to start its threads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros(1 << 20).add(1.0).mean()


class Ten(torch.nn.Module):
    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor,
        e: torch.Tensor,
        f: torch.Tensor,
        g: torch.Tensor,
        h: torch.Tensor,
        i: torch.Tensor,
        j: torch.Tensor,
    ) -> list[torch.Tensor]:
        return [a, b, c, d, e, f, g, h, i, j]


def build(folder: Path) -> Path:
    """All models; each is loaded by the tests that need it."""
    repository = Repository(folder)
    _build_onnx(repository)
    _build_broken(repository)
    _build_torch(repository)
    return folder


def _build_onnx(repository: Repository) -> None:
    identity = [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])]
    wide: tuple[list[Tensor], list[Tensor]] = ([("INPUT", "FP32", [64])], [("OUTPUT", "FP32", [64])])
    batching = "dynamic_batching { max_queue_delay_microseconds: 100000 preferred_batch_size: [ 8 ] }"
    repository.onnx("identity", identity, *wide, max_batch_size=32, extra="dynamic_batching { }")
    repository.onnx("batching", identity, *wide, extra=batching)
    repository.onnx("cached", identity, *wide, extra="response_cache { enable: true }")
    repository.onnx("automatic", identity, *wide, config='backend: "onnxruntime"\n')
    repository.onnx("renamed", identity, *wide, extra='default_model_filename: "net.onnx"', filename="net.onnx")
    repository.onnx(
        "add_sub",
        [helper.make_node("Add", ["A", "B"], ["SUM"]), helper.make_node("Sub", ["A", "B"], ["DIFFERENCE"])],
        [("A", "FP32", [4]), ("B", "FP32", [4])],
        [("SUM", "FP32", [4]), ("DIFFERENCE", "FP32", [4])],
    )
    repository.onnx(
        "types",
        [helper.make_node("Identity", [f"IN_{dtype}"], [f"OUT_{dtype}"]) for dtype in ALL_ONNX],
        [(f"IN_{dtype}", dtype, [3]) for dtype in ALL_ONNX],
        [(f"OUT_{dtype}", dtype, [3]) for dtype in ALL_ONNX],
    )
    repository.onnx(
        "optional",
        [helper.make_node("Add", ["X", "BIAS"], ["Y"])],
        [("X", "FP32", [2]), ("BIAS", "FP32", [2])],
        [("Y", "FP32", [2])],
        initializers=[helper.make_tensor("BIAS", TensorProto.FLOAT, [1, 2], [100.0, 200.0])],
        optional=["BIAS"],
        extra=batching,
    )
    repository.onnx(
        "unbatched",
        [helper.make_node("ReduceSum", ["X", "AXES"], ["Y"], keepdims=0)],
        [("X", "FP32", [2, -1])],
        [("Y", "FP32", [2])],
        initializers=[helper.make_tensor("AXES", TensorProto.INT64, [1], [1])],
        max_batch_size=0,
    )
    repository.onnx(
        "ragged",
        [helper.make_node("Neg", ["X"], ["Y"])],
        [("X", "INT64", [-1])],
        [("Y", "INT64", [-1])],
        extra=batching,
        ragged=True,
    )
    repository.onnx(
        "lookup",
        [helper.make_node("Gather", ["TABLE", "INDEX"], ["VALUE"])],
        [("INDEX", "INT64", [1])],
        [("VALUE", "FP32", [1])],
        initializers=[helper.make_tensor("TABLE", TensorProto.FLOAT, [10], [10.0 * row for row in range(10)])],
        extra=batching,
    )
    repository.onnx(
        "bfloat16",
        [
            helper.make_node("Cast", ["X"], ["WIDE"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["WIDE"], ["NARROW"], to=TensorProto.BFLOAT16),
        ],
        [("X", "BF16", [2])],
        [("WIDE", "FP32", [2]), ("NARROW", "BF16", [2])],
        extra=batching,
    )
    for count in (1, 2):
        repository.onnx(f"instances_{count}", identity, *wide, extra=_instances(count))
    for threads in (1, 4):
        repository.onnx(
            f"threads_{threads}",
            identity,
            *wide,
            extra=_parameters(intra_op_thread_count=threads, execution_mode=0, inter_op_thread_count=1)
            + "optimization { graph { level: 1 } }",
        )


def _build_broken(repository: Repository) -> None:
    identity = [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])]
    wide: tuple[list[Tensor], list[Tensor]] = ([("INPUT", "FP32", [64])], [("OUTPUT", "FP32", [64])])
    repository.onnx("bad_threads", identity, *wide, extra=_parameters(intra_op_thread_count="many"))
    repository.onnx("bad_level", identity, *wide, extra="optimization { graph { level: 7 } }")
    repository.onnx("bad_type", identity, *wide, config=describe("onnxruntime", [("INPUT", "INT64", [64])], wide[1], 8))
    repository.onnx("bad_name", identity, *wide, config=describe("onnxruntime", [("WRONG", "FP32", [64])], wide[1], 8))
    text: tuple[list[Tensor], list[Tensor]] = (
        [("NUMBER", "BF16", [1]), ("TEXT", "STRING", [1])],
        [("NUMBER_OUT", "BF16", [1]), ("TEXT_OUT", "STRING", [1])],
    )
    both = [helper.make_node("Identity", [name], [f"{name}_OUT"]) for name in ("NUMBER", "TEXT")]
    repository.onnx("bfloat16_text", both, *text)
    for name, backend, filename in (("corrupt", "onnxruntime", "model.onnx"), ("corrupt_pt", "pytorch", "model.pt")):
        repository.write_config(name, describe(backend, *wide, 8))
        (repository.folder / name / "1" / filename).write_bytes(CORRUPT)
    repository.write_config("missing", describe("onnxruntime", *wide, 8))
    repository.write_config("missing_pt", describe("pytorch", *wide, 8))


def _build_torch(repository: Repository) -> None:
    four: Callable[..., list[Tensor]] = lambda *names: [(name, "FP32", [4]) for name in names]  # noqa: E731
    batching = "dynamic_batching { max_queue_delay_microseconds: 100000 preferred_batch_size: [ 8 ] }"
    repository.torchscript(
        "torch_indexed",
        AddSub(),
        [("INPUT__1", "FP32", [4]), ("INPUT__0", "FP32", [4])],
        [("DIFFERENCE__1", "FP32", [4]), ("SUM__0", "FP32", [4])],
        extra=batching + _parameters(INFERENCE_MODE="true", INTRA_OP_THREAD_COUNT=1),
    )
    repository.torchscript("torch_named", AddSub(), four("right", "left"), four("SUM__0", "DIFFERENCE__1"))
    repository.torchscript(
        "torch_ordered",
        AddSub(),
        four("first", "second"),
        four("total", "rest"),
        extra=_parameters(DISABLE_OPTIMIZED_EXECUTION="true", INFERENCE_MODE="false"),
    )
    repository.torchscript("torch_optional", Shift(), four("x", "by"), four("y__0"), optional=["by"], extra=batching)
    repository.torchscript(
        "torch_types",
        Ten(),
        [(f"IN_{dtype}__{place}", dtype, [3]) for place, dtype in enumerate(ALL_TORCH)],
        [(f"OUT_{dtype}__{place}", dtype, [3]) for place, dtype in enumerate(ALL_TORCH)],
    )
    repository.torchscript(
        "torch_text", Greet(), [("names", "STRING", [1])], [("greetings__0", "STRING", [1])], max_batch_size=0
    )
    repository.torchscript(
        "torch_texts", Greet(), [("names", "STRING", [2])], [("greetings__0", "STRING", [2])], extra=batching
    )
    repository.torchscript("torch_too_few_texts", Forget(), [("names", "STRING", [2])], [("rest__0", "STRING", [2])])
    repository.torchscript(
        "torch_ragged", Negate(), [("x", "INT64", [-1])], [("y", "INT64", [-1])], extra=batching, ragged=True
    )
    for mode in ("true", "false"):
        repository.torchscript(
            f"torch_inference_mode_{mode}",
            Modes(),
            four("x"),
            [("modes", "BOOL", [2])],
            extra=_parameters(INFERENCE_MODE=mode),
        )
    for threads in (1, 4):
        extra = _warmup("x") + _parameters(INTRA_OP_THREAD_COUNT=threads)
        repository.torchscript(f"torch_threads_{threads}", Parallel(), four("x"), four("y"), extra=extra)
    for count in (1, 2):
        extra = _warmup("x") + _instances(count)
        repository.torchscript(f"torch_instances_{count}", Parallel(), four("x"), four("y"), extra=extra)
    repository.torchscript(
        "torch_lookup", Lookup(), [("index__0", "INT64", [1])], [("value__0", "FP32", [1])], extra=batching
    )
    repository.torchscript("torch_wrong_type", AddSub(), four("left", "right"), [("SUM__0", "FP64", [4])])
    repository.torchscript("torch_too_many", AddSub(), four("a__0", "b__1", "c__2"), four("SUM__0"))


def _instances(count: int) -> str:
    return f"instance_group {{ count: {count} kind: KIND_CPU }}"


def _warmup(name: str) -> str:
    """One call of every instance while the model loads."""
    value = "{ data_type: TYPE_FP32 dims: [4] zero_data: true }"
    return f'model_warmup {{ name: "zeros" batch_size: 1 inputs {{ key: "{name}" value {value} }} }}\n'


def _parameters(**values: object) -> str:
    return "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    )
