"""How the weights are kept: safetensors, fp16, big matrices as int8 with a scale per row.

A matrix `w` kept in int8 is two tensors: `w.int8` [rows, columns] and `w.scale` float16 [rows];
its value is int8 * scale. Everything else is float16 under its own name.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

INT8 = ".int8"
SCALE = ".scale"


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Float [rows, columns] -> int8 [rows, columns] and float16 scale [rows], symmetric."""
    scale = (matrix.abs().amax(dim=1) / 127).clamp(min=1e-7).half()
    rounded = torch.round(matrix / scale.float().unsqueeze(1)).clamp(-127, 127)
    return rounded.to(torch.int8), scale


def dequantize_rows(values: Tensor, scale: Tensor) -> Tensor:
    """The inverse of quantize_rows, float32 [rows, columns]."""
    return values.float() * scale.float().unsqueeze(1)


def pack(state: Mapping[str, Tensor], int8_from: int | None) -> dict[str, Tensor]:
    """Tensors as they are stored.

    int8_from: matrices of at least so many elements are kept in int8; None keeps all in fp16.
    """
    packed: dict[str, Tensor] = {}
    for name, value in state.items():
        if int8_from is not None and value.dim() == 2 and value.numel() >= int8_from:
            packed[name + INT8], packed[name + SCALE] = quantize_rows(value.float())
        else:
            packed[name] = value.half().contiguous()
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors as float32, under the names they had before `pack`."""
    state: dict[str, Tensor] = {}
    for name, value in packed.items():
        if name.endswith(INT8):
            whole = name[: -len(INT8)]
            state[whole] = dequantize_rows(value, packed[whole + SCALE])
        elif not name.endswith(SCALE):
            state[name] = value.float()
    return state


def save_weights(path: Path, state: Mapping[str, Tensor], int8_from: int | None = None) -> None:
    """Write `state` as safetensors."""
    save_file(pack(state, int8_from), path, metadata={"format": "pt"})


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what save_weights wrote, as float32 tensors."""
    return unpack(load_file(path))
