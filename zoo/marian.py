"""MarianMT (the OPUS-MT models) as a module that TorchScript can script, so that decoding runs inside Triton.

Sources: Junczys-Dowmunt et al. 2018 (Marian), Tiedemann and Thottingal 2020 (OPUS-MT); the parameters
keep the names that ``transformers`` gives them. Same interface as :class:`zoo.architectures.translation.Translation`,
so that :class:`zoo.architectures.translation.Translator` searches over either.
"""

# TorchScript compiles this file and knows no casts, so what a ModuleList holds cannot be told to mypy:
# mypy: disable-error-code="operator, union-attr, no-any-return"

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.architectures.translation import BANNED, Translation, Translator
from zoo.errors import SourceError

TOLERANCE = 1e-3
"""Of a logit, against the checkpoint run by ``transformers``."""

ACTIVATIONS = ("swish", "silu", "relu", "gelu")


class MarianAttention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def split(self, states: Tensor) -> Tensor:
        """``[batch, seq, width]`` to ``[batch, heads, seq, width / heads]``."""
        batch, length, width = states.shape
        return states.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``states``, each ``[batch, heads, seq, width / heads]``."""
        return self.split(self.k_proj(states)), self.split(self.v_proj(states))

    def forward(self, states: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from ``states`` ``[batch, seq, width]``; ``mask`` is added to the scores."""
        query = self.split(self.q_proj(states))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        batch, length, width = states.shape
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MarianLayer(nn.Module):
    """What encoder and decoder layers share: self-attention, feed-forward, each with a LayerNorm behind it."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.self_attn = MarianAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def feed_forward(self, states: Tensor) -> Tensor:
        """The second half of a layer."""
        hidden = self.fc1(states)
        if self.activation == "relu":
            hidden = functional.relu(hidden)
        elif self.activation == "gelu":
            hidden = functional.gelu(hidden)
        else:
            hidden = functional.silu(hidden)
        return self.final_layer_norm(states + self.fc2(hidden))


class MarianEncoderLayer(MarianLayer):
    """Self-attention over the source."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States ``[batch, seq, width]``; ``mask`` is additive."""
        key, value = self.self_attn.project(states)
        states = self.self_attn_layer_norm(states + self.self_attn(states, key, value, mask))
        return self.feed_forward(states)


class MarianDecoderLayer(MarianLayer):
    """Causal self-attention and attention over the source."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__(width, heads, hidden, activation)
        self.encoder_attn = MarianAttention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)

    def forward(
        self, states: Tensor, past: tuple[Tensor, Tensor], self_mask: Tensor | None, source: tuple[Tensor, Tensor],
        source_mask: Tensor,
    ) -> Tensor:  # fmt: skip
        """``past`` includes the keys and values of ``states`` themselves."""
        states = self.self_attn_layer_norm(states + self.self_attn(states, past[0], past[1], self_mask))
        mixed = self.encoder_attn(states, source[0], source[1], source_mask)
        states = self.encoder_attn_layer_norm(states + mixed)
        return self.feed_forward(states)


class MarianEncoder(nn.Module):
    """The layers of the encoder, under the name the checkpoint has for them."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MarianEncoderLayer(width, heads, hidden, activation) for _ in range(layers))


class MarianDecoder(nn.Module):
    """The layers of the decoder."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MarianDecoderLayer(width, heads, hidden, activation) for _ in range(layers))


class Marian(nn.Module):
    """Encoder-decoder Transformer of MarianMT with one vocabulary for both languages.

    ``config`` is ``transformers.MarianConfig``. Raises :class:`SourceError` for a variant that OPUS-MT
    does not use and this module does not have.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not config.share_encoder_decoder_embeddings:
            raise SourceError("a MarianMT checkpoint with separate vocabularies is not supported")
        if config.activation_function not in ACTIVATIONS:
            raise SourceError(f"a MarianMT checkpoint with activation {config.activation_function!r} is not supported")
        self.width = config.d_model
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.target_size = config.vocab_size
        self.banned = BANNED
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = MarianEncoder(
            config.encoder_layers, config.d_model, config.encoder_attention_heads, config.encoder_ffn_dim,
            config.activation_function,
        )  # fmt: skip
        self.decoder = MarianDecoder(
            config.decoder_layers, config.d_model, config.decoder_attention_heads, config.decoder_ffn_dim,
            config.activation_function,
        )  # fmt: skip
        self.final_logits_bias: Tensor
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))

    def positions(self, start: int, length: int) -> Tensor:
        """Sinusoidal codes ``[length, width]``: all sines first, then all cosines."""
        weight = self.shared.weight
        position = torch.arange(start, start + length, device=weight.device).to(weight.dtype)
        index = torch.arange(0, self.width, 2, device=weight.device).to(weight.dtype)
        angle = position.unsqueeze(1) * torch.exp(index * (-math.log(10000.0) / self.width)).unsqueeze(0)
        return torch.cat((torch.sin(angle), torch.cos(angle)), dim=1)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """Embeddings ``[batch, seq, width]`` of ids at positions ``start``, ``start + 1``, …"""
        return self.shared(ids) * self.scale + self.positions(start, ids.shape[1])

    def source_mask(self, attention_mask: Tensor) -> Tensor:
        """``[batch, seq]`` of 1 and 0 to an additive mask ``[batch, 1, 1, seq]``."""
        hidden = (attention_mask == 0).to(self.shared.weight.dtype) * self.banned
        return hidden.unsqueeze(1).unsqueeze(1)

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encoder states ``[batch, seq, width]``; ``mask`` comes from ``source_mask``."""
        states = self.embed(input_ids, 0)
        for layer in self.encoder.layers:
            states = layer(states, mask)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Decoder states ``[..., width]`` to logits ``[..., vocabulary]``."""
        return functional.linear(states, self.shared.weight) + self.final_logits_bias[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_ids: Tensor) -> Tensor:
        """Teacher forcing: logits ``[batch, target seq, vocabulary]`` of each next id."""
        mask = self.source_mask(attention_mask)
        memory = self.encode(input_ids, mask)
        length = decoder_ids.shape[1]
        future = torch.full((length, length), self.banned, dtype=memory.dtype, device=memory.device)
        causal = torch.triu(future, diagonal=1)
        states = self.embed(decoder_ids, 0)
        for layer in self.decoder.layers:
            source = layer.encoder_attn.project(memory)
            states = layer(states, layer.self_attn.project(states), causal, source, mask)
        return self.logits(states)

    def sources(self, memory: Tensor, beams: int) -> list[tuple[Tensor, Tensor]]:
        """Per decoder layer the source's keys and values, each row repeated ``beams`` times."""
        sources: list[tuple[Tensor, Tensor]] = []
        for layer in self.decoder.layers:
            key, value = layer.encoder_attn.project(memory)
            sources.append((key.repeat_interleave(beams, dim=0), value.repeat_interleave(beams, dim=0)))
        return sources

    def step(
        self, ids: Tensor, position: int, pasts: list[tuple[Tensor, Tensor]], sources: list[tuple[Tensor, Tensor]],
        mask: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:  # fmt: skip
        """Decode one id per row: ids ``[rows, 1]`` at ``position`` to logits ``[rows, vocabulary]`` and grown pasts."""
        states = self.embed(ids, position)
        grown: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.decoder.layers):
            key, value = layer.self_attn.project(states)
            past = (torch.cat((pasts[index][0], key), dim=2), torch.cat((pasts[index][1], value), dim=2))
            grown.append(past)
            states = layer(states, past, None, sources[index], mask)
        return self.logits(states[:, 0]), grown


def from_transformers(source: Any, *, unknown: int) -> Translator:
    """A :class:`Translator` with the weights of a ``transformers.MarianMTModel``.

    Beams, length penalty and longest output are those of the checkpoint's generation settings;
    ``unknown`` is the tokenizer's id of what it does not know, which is never written. Raises
    :class:`SourceError` if it does not compute what the source computes.
    """
    config, generation = source.config, source.generation_config
    model = Marian(config).eval()
    model.load_state_dict(_state(source))
    _check_equal(source, model)
    translator = Translator(
        cast(Translation, model),  # the same interface
        beams=generation.num_beams or 4,
        length_penalty=generation.length_penalty if generation.length_penalty is not None else 1.0,
        longest=min(generation.max_length or 512, config.max_position_embeddings, 256),
    )
    translator.pad = config.pad_token_id
    translator.bos = config.decoder_start_token_id
    translator.eos = config.eos_token_id
    translator.unknown = unknown
    return translator.eval()


def _state(source: Any) -> dict[str, Tensor]:
    """The checkpoint's tensors under this module's names; tied copies and position tables left out."""
    state = {name.removeprefix("model."): value for name, value in source.state_dict().items()}
    return {
        name: value
        for name, value in state.items()
        if name != "lm_head.weight" and not name.endswith(("embed_tokens.weight", "embed_positions.weight"))
    }


def _check_equal(source: Any, model: Marian) -> None:
    """Teacher-forced logits of both on ids that are all different, one row of them padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.target_size, (2, 12), generator=generator)
    targets = torch.randint(0, model.target_size, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.inference_mode():
        expected = source(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
        error = float((model(ids, mask, targets) - expected).abs().max())
    if not error <= TOLERANCE:
        raise SourceError(f"this MarianMT variant is not supported: logits differ by {error:.3g} from transformers'")
