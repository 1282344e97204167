"""Low-rank adapters (LoRA, Hu et al. 2021): taken out of a trained trunk, merged into a fresh one.

An adapter is a pair of tensors per linear layer: `<layer>.lora_A` [rank, in] and
`<layer>.lora_B` [out, rank], the scaling already in the latter. The layer's weight becomes
weight + lora_B @ lora_A.
"""

from collections.abc import Mapping

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

A, B = ".lora_A", ".lora_B"


def extract_adapter(trunk: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The adapter that peft injected into `trunk` and that was trained there."""
    state: dict[str, Tensor] = {}
    for path, module in trunk.named_modules():
        if isinstance(module, LoraLayer):
            down, up = module.lora_A[name], module.lora_B[name]
            state[path + A] = down.get_parameter("weight").detach()
            state[path + B] = up.get_parameter("weight").detach() * module.scaling[name]
    return state


@torch.no_grad()
def merge_adapter(trunk: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Add an adapter to the weights of a plain trunk, in place."""
    for path in sorted(key[: -len(A)] for key in state if key.endswith(A)):
        weight = trunk.get_submodule(path).weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"{path} has no weight to adapt")
        weight += state[path + B] @ state[path + A]
