"""Training of the two translation models, which differ only in data and sizes."""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from zoo.architectures.loading import load_translator
from zoo.architectures.storage import load_weights, save_weights
from zoo.architectures.translation import BOS, EOS, PAD, Translation, TranslationConfig, Translator
from zoo.training.common import (
    Budget,
    Options,
    Trainer,
    length_buckets,
    pad_rows,
    padded,
    seed_everything,
    warm_cosine,
    write_record,
)
from zoo.training.datasets import source_files
from zoo.training.evaluation import bleu
from zoo.training.pieces import end_with_eos, target_first, train_bpe

logger = logging.getLogger(__name__)

Pair = tuple[str, str]

INT8_FROM = 10_000


@dataclass(frozen=True)
class Search:
    """How a served model searches: see Translator."""

    beams: int = 4
    length_penalty: float = 1.0


SEARCH = Search()


@dataclass(frozen=True)
class Plan:
    """How a translation model is trained.

    tokens: target tokens in a batch; consistency: weight of R-Drop (Liang et al. 2021),
    applied in the part of the time after consistency_from; piece_dropout: BPE-dropout
    (Provilkov et al. 2020); word_dropout: share of ids replaced by <unk> in the input.
    """

    vocabulary: int = 8000
    width: int = 256
    heads: int = 4
    feed_forward: int = 768
    encoder_layers: int = 3
    decoder_layers: int = 3
    dropout: float = 0.2
    piece_dropout: float = 0.1
    word_dropout: float = 0.05
    label_smoothing: float = 0.1
    consistency: float = 2.0
    consistency_from: float = 0.5
    rate: float = 8.0e-4
    warmup: int = 1000
    tokens: int = 900
    weight_decay: float = 0.01
    averaging: float = 0.9995
    evaluate_every: int = 3


def make_tokenizer(pairs: Sequence[Pair], vocabulary: int) -> tuple[Tokenizer, int]:
    """The joint tokenizer of both languages, and the number of ids the decoder may write."""
    texts = (text for pair in pairs for text in pair)
    tokenizer, target_size = target_first(train_bpe(texts, vocabulary), [target for _, target in pairs])
    end_with_eos(tokenizer)
    return tokenizer, target_size


def encode(tokenizer: Tokenizer, texts: Sequence[str], dropout: float) -> list[list[int]]:
    """Ids with EOS at the end; `dropout` is BPE-dropout and makes each call different."""
    tokenizer.model.dropout = dropout or None
    encodings = tokenizer.encode_batch(list(texts))
    tokenizer.model.dropout = None
    return [encoding.ids for encoding in encodings]


def blank(ids: Tensor, share: float) -> Tensor:
    """Word dropout: replace a share of the ordinary ids by <unk>."""
    hit = (torch.rand(ids.shape) < share) & (ids > EOS)
    return ids.masked_fill(hit, 1)


def divergence(logits: Tensor, real: Tensor) -> Tensor:
    """Symmetric KL between the two halves of the batch, summed over `real` positions."""
    first, second = functional.log_softmax(logits, dim=-1).chunk(2)
    keep = real.chunk(2)[0]
    gap = ((first.exp() - second.exp()) * (first - second)).sum(dim=-1) / 2
    return (gap * keep).sum()


def batch_loss(model: Translation, source: Tensor, target: Tensor, plan: Plan, twice: bool) -> Tensor:
    """Label-smoothed cross-entropy per target token, with R-Drop where `twice`."""
    if twice:
        source, target = source.repeat(2, 1), target.repeat(2, 1)
    mask = (source != PAD).long()
    begin = torch.full((len(target), 1), BOS)
    shifted = blank(torch.cat((begin, target[:, :-1]), dim=1), plan.word_dropout)
    logits = model(blank(source, plan.word_dropout), mask, shifted).float()
    real = target != PAD
    loss = functional.cross_entropy(
        logits.flatten(0, 1),
        target.flatten(),
        ignore_index=PAD,
        label_smoothing=plan.label_smoothing,
    )
    if twice:
        loss = loss + plan.consistency * divergence(logits, real) / real.sum()
    return loss


@torch.inference_mode()
def translate(translator: nn.Module, tokenizer: Tokenizer, sources: Sequence[str], batch: int = 64) -> list[str]:
    """Translations of `sources`, in their order."""
    rows = encode(tokenizer, sources, 0.0)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    texts = [""] * len(rows)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        output, _ = translator(*padded([rows[row] for row in chosen]))
        for row, ids in zip(chosen, output.tolist(), strict=True):
            texts[row] = tokenizer.decode(ids, skip_special_tokens=True)
    return texts


def bleu_of(translator: nn.Module, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> float:
    """Sacrebleu 13a BLEU of the translator on `pairs`."""
    sources, references = zip(*pairs, strict=True)
    return bleu(translate(translator, tokenizer, sources), references)


def save_model(folder: Path, model: Translation, tokenizer: Tokenizer, config: TranslationConfig) -> None:
    """Write weights, tokenizer and config.json, which load_translator reads."""
    save_weights(folder / "weights.safetensors", model.state_dict(), INT8_FROM)
    tokenizer.save(str(folder / "tokenizer.json"))
    state = {"model": config.as_dict(), "search": asdict(SEARCH)}
    text = json.dumps(state, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def prepare(pairs: Sequence[Pair], plan: Plan, start: Path | None) -> tuple[Translation, Tokenizer, TranslationConfig]:
    """A fresh model and tokenizer, or those of the folder `start`."""
    if start is not None:
        sizes = json.loads((start / "config.json").read_text(encoding="utf-8"))["model"]
        config = TranslationConfig(**sizes)
        model = Translation(config)
        model.load_state_dict(load_weights(start / "weights.safetensors"))
        return model, Tokenizer.from_file(str(start / "tokenizer.json")), config
    tokenizer, target_size = make_tokenizer(pairs, plan.vocabulary)
    config = TranslationConfig(
        vocabulary_size=tokenizer.get_vocab_size(),
        target_size=target_size,
        width=plan.width,
        heads=plan.heads,
        feed_forward=plan.feed_forward,
        encoder_layers=plan.encoder_layers,
        decoder_layers=plan.decoder_layers,
        dropout=plan.dropout,
    )
    return Translation(config), tokenizer, config


def train(train_pairs: Sequence[Pair], check_pairs: Sequence[Pair], options: Options, plan: Plan) -> int:
    """Train until the time is up and save the averaged model; returns the steps taken.

    Saves, and logs greedy BLEU, every few epochs. A run that goes on from earlier weights
    warms up again, to half the learning rate.
    """
    generator = seed_everything(options.seed)
    model, tokenizer, config = prepare(train_pairs, plan, options.start)
    peak = plan.rate if options.start is None else plan.rate / 2
    logger.info("%s", {**asdict(plan), **config.as_dict()})
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    trainer = Trainer(model, averaging=plan.averaging, weight_decay=plan.weight_decay, seed=options.seed)
    budget = Budget(options.minutes)
    epoch = 0
    while not budget.spent():
        losses: list[float] = []
        for source, target, twice in epoch_batches(tokenizer, train_pairs, plan, generator, budget):
            rate = peak * warm_cosine(trainer.steps, budget.progress, plan.warmup)
            loss = batch_loss(model, source, target, plan, twice)
            trainer.step(loss, rate)
            losses.append(loss.item())
            if trainer.steps % 100 == 0:
                logger.info(
                    "epoch %d step %d loss %.3f %.0f s", epoch, trainer.steps, fmean(losses[-100:]), budget.elapsed
                )
            if budget.spent():
                break
        epoch += 1
        if epoch % plan.evaluate_every == 0 or budget.spent():
            score = bleu_of(Translator(trainer.average, beams=1), tokenizer, check_pairs)
            logger.info(
                "epoch %d step %d loss %.3f greedy BLEU %.2f %.0f s",
                epoch,
                trainer.steps,
                fmean(losses),
                score,
                budget.elapsed,
            )
            save_model(options.out, trainer.average, tokenizer, config)
    return trainer.steps


def epoch_batches(
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    plan: Plan,
    generator: random.Random,
    budget: Budget,
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Batches of one epoch: source, target [batch, seq] and whether R-Drop applies."""
    sources = encode(tokenizer, [source for source, _ in pairs], plan.piece_dropout)
    targets = encode(tokenizer, [target for _, target in pairs], plan.piece_dropout)
    lengths = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
    twice = plan.consistency > 0 and budget.progress >= plan.consistency_from
    tokens = plan.tokens // 2 if twice else plan.tokens
    for rows in length_buckets(lengths, tokens, generator):
        yield pad_rows([sources[row] for row in rows]), pad_rows([targets[row] for row in rows]), twice


def earlier(start: Path | None) -> dict[str, Any] | None:
    """Steps, time and score of the run whose weights this one went on from."""
    if start is None:
        return None
    before = json.loads((start / "training.json").read_text(encoding="utf-8"))
    return {
        "steps": before["hyperparameters"]["steps"],
        "wall_time_s": before["wall_time_s"],
        "score": before["score"],
    }


def record(name: str, check_pairs: Sequence[Pair], options: Options, plan: Plan, steps: int, seconds: float) -> None:
    """Measure the weights as they are kept, and write training.json."""
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    translator = load_translator(options.out).eval()
    score = bleu_of(translator, tokenizer, check_pairs)
    logger.info("BLEU %.2f", score)
    write_record(
        options.out,
        model=name,
        files=source_files(name, options.data),
        split="the training file trains, the validation file validates",
        hyperparameters={
            **asdict(plan),
            "steps": steps,
            "search": asdict(SEARCH),
            "continued_from": earlier(options.start),
            "optimizer": "AdamW",
            "precision": "bfloat16, float32 masters and attention",
        },
        score={"metric": "sacrebleu 13a", "value": round(score, 2), "examples": len(check_pairs)},
        seed=options.seed,
        seconds=seconds,
        libraries=("torch", "tokenizers", "safetensors", "sacrebleu"),
    )


def run(name: str, pairs: Sequence[Pair], check_pairs: Sequence[Pair], options: Options, plan: Plan) -> None:
    """Train, save, measure."""
    budget = Budget(options.minutes)
    steps = train(pairs, check_pairs, options, plan)
    record(name, check_pairs, options, plan, steps, budget.elapsed)
