"""A small pre-norm Transformer for translation, and its decoding loop in TorchScript.

Sources: Vaswani et al. 2017 (the Transformer), Xiong et al. 2020 (pre-norm),
Press and Wolf 2017 (tied embeddings), Paulus et al. 2018 (no repeated trigram).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PAD, UNKNOWN, BOS, EOS = 0, 1, 2, 3
BANNED = -1.0e9  # a score no path recovers from, yet finite: -inf * 0 would be nan


@dataclass(frozen=True)
class TranslationConfig:
    """Sizes of a Translation.

    `target_size`: the decoder writes only ids below it; the tokenizer numbers the
    pieces that occur in the target language first.
    """

    vocabulary_size: int
    target_size: int
    width: int = 256
    heads: int = 4
    feed_forward: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    dropout: float = 0.25

    def as_dict(self) -> dict[str, Any]:
        """The sizes by name, for config.json."""
        return asdict(self)


def sinusoid(start: int, length: int, width: int, device: torch.device) -> Tensor:
    """Position codes float32 [length, width] for positions start .. start + length - 1."""
    position = torch.arange(start, start + length, device=device).float()
    index = torch.arange(0, width, 2, device=device).float()
    angle = position.unsqueeze(1) * torch.exp(index * (-math.log(10000.0) / width)).unsqueeze(0)
    return torch.cat((torch.sin(angle), torch.cos(angle)), dim=1)


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def split(self, states: Tensor) -> Tensor:
        """[batch, seq, width] -> [batch, heads, seq, width / heads]."""
        batch, length, width = states.shape
        return states.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `states`, each [batch, heads, seq, width / heads]."""
        key, value = self.key_value(states).chunk(2, dim=-1)
        return self.split(key), self.split(value)

    def forward(self, states: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from `states` [batch, seq, width]; `mask` is added to the scores.

        The attention itself is float32, whatever the weights are.
        """
        query = self.split(self.query(states)).float()
        mixed = functional.scaled_dot_product_attention(query, key.float(), value.float(), attn_mask=mask)
        batch, length, width = states.shape
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        output: Tensor = self.output(mixed.to(states.dtype))
        return output


class FeedForward(nn.Module):
    """Two dense layers, ReLU and dropout between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """[batch, seq, width] -> [batch, seq, width]."""
        output: Tensor = self.outer(self.dropout(functional.relu(self.inner(states))))
        return output


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm and a residual."""

    def __init__(self, config: TranslationConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """[batch, seq, width] -> [batch, seq, width]; `mask` is additive."""
        normed = self.attention_norm(states)
        key, value = self.attention.project(normed)
        states = states + self.dropout(self.attention(normed, key, value, mask))
        output: Tensor = states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return output


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the source, feed-forward; pre-norm."""

    def __init__(self, config: TranslationConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.source_norm = nn.LayerNorm(config.width)
        self.source_attention = Attention(config.width, config.heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def past(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that the self-attention has to keep of `states`."""
        return self.self_attention.project(self.self_norm(states))

    def forward(
        self,
        states: Tensor,
        past: tuple[Tensor, Tensor],
        self_mask: Tensor | None,
        source: tuple[Tensor, Tensor],
        source_mask: Tensor,
    ) -> Tensor:
        """`past` includes the keys and values of `states` themselves."""
        mixed = self.self_attention(self.self_norm(states), past[0], past[1], self_mask)
        states = states + self.dropout(mixed)
        mixed = self.source_attention(self.source_norm(states), source[0], source[1], source_mask)
        states = states + self.dropout(mixed)
        output: Tensor = states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return output


class DecoderLayers(nn.ModuleList):
    """A ModuleList that tells type checkers what it holds."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[DecoderLayer]: ...


class Translation(nn.Module):
    """Encoder-decoder Transformer with one embedding for source, target and output."""

    def __init__(self, config: TranslationConfig) -> None:
        super().__init__()
        self.width = config.width
        self.target_size = config.target_size
        self.banned = BANNED
        self.embedding = nn.Embedding(config.vocabulary_size, config.width, padding_idx=PAD)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.width)
        self.decoder = DecoderLayers(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, ids: Tensor, start: int) -> Tensor:
        """Embeddings [batch, seq, width] of ids that stand at positions start, start + 1, …"""
        scaled = self.embedding(ids) * math.sqrt(self.width)
        position = sinusoid(start, ids.shape[1], self.width, ids.device)
        embedded: Tensor = self.dropout(scaled + position.to(scaled.dtype))
        return embedded

    def source_mask(self, attention_mask: Tensor) -> Tensor:
        """[batch, seq] of 1 and 0 -> additive mask [batch, 1, 1, seq]."""
        hidden = (attention_mask == 0).float() * self.banned
        return hidden.unsqueeze(1).unsqueeze(1)

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encoder states [batch, seq, width]; `mask` comes from source_mask."""
        states = self.embed(input_ids, 0)
        for layer in self.encoder:
            states = layer(states, mask)
        memory: Tensor = self.encoder_norm(states)
        return memory

    def logits(self, states: Tensor) -> Tensor:
        """Decoder states [..., width] -> logits [..., target_size], by the tied embedding."""
        return functional.linear(self.decoder_norm(states), self.embedding.weight[: self.target_size])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_ids: Tensor) -> Tensor:
        """Teacher forcing: logits [batch, target seq, target_size] of each next id.

        All arguments int64 [batch, seq]; `decoder_ids` begins with BOS and may end with
        padding, which nothing before it can see.
        """
        mask = self.source_mask(attention_mask)
        memory = self.encode(input_ids, mask)
        length = decoder_ids.shape[1]
        future = torch.full((length, length), self.banned, device=memory.device)
        causal = torch.triu(future, diagonal=1)
        states = self.embed(decoder_ids, 0)
        for layer in self.decoder:
            source = layer.source_attention.project(memory)
            states = layer(states, layer.past(states), causal, source, mask)
        return self.logits(states)

    def sources(self, memory: Tensor, beams: int) -> list[tuple[Tensor, Tensor]]:
        """Per decoder layer the source's keys and values, each row repeated `beams` times."""
        sources: list[tuple[Tensor, Tensor]] = []
        for layer in self.decoder:
            key, value = layer.source_attention.project(memory)
            sources.append((key.repeat_interleave(beams, dim=0), value.repeat_interleave(beams, dim=0)))
        return sources

    def step(
        self,
        ids: Tensor,
        position: int,
        pasts: list[tuple[Tensor, Tensor]],
        sources: list[tuple[Tensor, Tensor]],
        mask: Tensor,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Decode one id per row.

        ids [rows, 1] stand at `position`; `pasts` holds each layer's keys and values of the
        positions before. Returns logits [rows, target_size] and the pasts grown by one.
        """
        states = self.embed(ids, position)
        grown: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.decoder):
            key, value = layer.past(states)
            past = (
                torch.cat((pasts[index][0], key), dim=2),
                torch.cat((pasts[index][1], value), dim=2),
            )
            grown.append(past)
            states = layer(states, past, None, sources[index], mask)
        return self.logits(states[:, 0]), grown


class Translator(nn.Module):
    """A Translation with beam search inside: what is scripted and served.

    The result for a sentence depends on that sentence alone, not on its batch or padding.
    """

    def __init__(
        self,
        model: Translation,
        beams: int = 4,
        length_penalty: float = 1.0,
        longest: int = 128,
    ) -> None:
        super().__init__()
        self.model = model
        self.beams = beams
        self.length_penalty = length_penalty
        self.longest = longest
        # TorchScript reads attributes, not a module's globals.
        self.pad, self.unknown, self.bos, self.eos = PAD, UNKNOWN, BOS, EOS
        self.banned = BANNED

    def limits(self, attention_mask: Tensor) -> Tensor:
        """The most ids [batch] that a sentence may get, EOS included, by its own length."""
        return (attention_mask.sum(dim=1) * 2 + 10).clamp(max=self.longest)

    def guard(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Ban padding, BOS, unknown, and any id that would repeat a trigram.

        scores [rows, target_size], tokens [rows, step] as written so far (BOS first).
        """
        scores[:, self.pad] = self.banned
        scores[:, self.unknown] = self.banned
        scores[:, self.bos] = self.banned
        if tokens.shape[1] > 3:
            same = (tokens[:, :-2] == tokens[:, -2:-1]) & (tokens[:, 1:-1] == tokens[:, -1:])
            scores = scores.scatter_add(1, tokens[:, 2:], same.to(scores.dtype) * self.banned)
        return scores

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Translate a batch.

        input_ids, attention_mask: int64 [batch, seq].
        Returns output_ids int64 [batch, out_len], without BOS, ended by EOS, then padded;
        and scores float32 [batch], the length-normalised log-probability of each.
        """
        beams = self.beams
        batch, device = input_ids.shape[0], input_ids.device
        mask = self.model.source_mask(attention_mask)
        memory = self.model.encode(input_ids, mask)
        rows = batch * beams
        mask = mask.repeat_interleave(beams, dim=0)
        sources = self.model.sources(memory, beams)
        pasts: list[tuple[Tensor, Tensor]] = []
        for key, value in sources:
            pasts.append((key[:, :, :0], value[:, :, :0]))

        limits = self.limits(attention_mask)
        width = int(limits.max().item())
        first = torch.arange(batch, device=device).unsqueeze(1) * beams
        tokens = torch.full([rows, 1], self.bos, dtype=torch.long, device=device)
        alive = torch.full([batch, beams], self.banned, dtype=memory.dtype, device=device)
        alive[:, 0] = 0.0
        best = torch.full([batch], 2.0 * self.banned, dtype=memory.dtype, device=device)
        output = torch.full([batch, width], self.pad, dtype=torch.long, device=device)
        longest_norm = limits.to(memory.dtype).pow(self.length_penalty)

        for step in range(width):
            logits, pasts = self.model.step(tokens[:, step:], step, pasts, sources, mask)
            scores = torch.log_softmax(logits.float(), dim=-1)
            scores = self.guard(scores, tokens).view(batch, beams, -1) + alive.unsqueeze(2)

            # End here: the best beam that closes now, against the best closed before.
            norm = float(step + 1) ** self.length_penalty
            closing, beam = scores[:, :, self.eos].max(dim=1)
            closing = closing / norm
            open_before = step < limits
            better = (closing > best) & open_before
            best = torch.where(better, closing, best)
            row = first[:, 0] + beam
            eos = torch.full([batch, 1], self.eos, dtype=torch.long, device=device)
            ended = functional.pad(
                torch.cat((tokens[row, 1:], eos), dim=1), [0, width - step - 1], value=float(self.pad)
            )
            output = torch.where(better.unsqueeze(1), ended, output)

            # Go on: the best `beams` continuations.
            scores[:, :, self.eos] = self.banned
            alive, choice = scores.view(batch, -1).topk(beams, dim=1)
            kept = torch.div(choice, self.model.target_size, rounding_mode="floor")
            rows_kept = (first + kept).view(-1)
            chosen = (choice % self.model.target_size).view(-1, 1)
            tokens = torch.cat((tokens[rows_kept], chosen), dim=1)
            for index in range(len(pasts)):
                pasts[index] = (pasts[index][0][rows_kept], pasts[index][1][rows_kept])

            reachable = alive[:, 0] / longest_norm
            done = (best >= reachable) | (step + 1 >= limits)
            if bool(done.all().item()):
                break

        used = int((output != self.pad).sum(dim=1).max().item())
        return output[:, :used], best
