"""What the three models on the shared trunk have in common when they are trained."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, BertModel
from transformers.masking_utils import sdpa_mask

from zoo.architectures.adapter import extract_adapter
from zoo.architectures.storage import save_weights
from zoo.architectures.trunk import load_trunk

ATTENTION = "float32_sdpa"


def float32_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention in float32 between bfloat16 layers: its bfloat16 gradient is slow on a CPU."""
    mixed = functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=attention_mask, scale=scaling
    )
    return mixed.to(query.dtype).transpose(1, 2).contiguous(), None


def trunk_with_adapter(rank: int, dropout: float) -> tuple[Tokenizer, BertModel]:
    """The tokenizer, without truncation or padding, and the trunk with a fresh adapter.

    The adapter sits on all linear layers and is all that can be trained.
    """
    AttentionInterface.register(ATTENTION, float32_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    path, trunk = load_trunk(ATTENTION)
    layers = sorted({name.rsplit(".", 1)[-1] for name, m in trunk.named_modules() if isinstance(m, nn.Linear)})
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=layers, bias="none")
    inject_adapter_in_model(config, trunk)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, trunk


def save_adapted(path: Path, model: nn.Module, int8_from: int | None = None) -> None:
    """Keep the adapter and the head of a trained model; the trunk stays in its package."""
    trunk, head = model.get_submodule("trunk"), model.get_submodule("head")
    state = {f"trunk.{name}": value for name, value in extract_adapter(trunk).items()}
    state |= {f"head.{name}": value.detach() for name, value in head.state_dict().items()}
    save_weights(path, state, int8_from)


def seed_head(model: nn.Module) -> None:
    """Start the head small, so that the first gradients do not tear the trunk."""
    head = model.get_submodule("head")
    if isinstance(head, nn.Linear):
        with torch.no_grad():
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
