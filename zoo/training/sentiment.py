"""Train sentiment, an adapter on the trunk, on SST-2: python -m zoo.training.sentiment"""

import logging
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from zoo.architectures.heads import SequenceClassifier
from zoo.architectures.loading import load_sequence_classifier
from zoo.training.adaptation import save_adapted, seed_head, trunk_with_adapter
from zoo.training.common import (
    Budget,
    Options,
    Trainer,
    length_buckets,
    padded,
    parse_options,
    seed_everything,
    warm_cosine,
    write_labels,
    write_record,
)
from zoo.training.datasets import read_sentiment, source_files
from zoo.training.evaluation import accuracy

logger = logging.getLogger(__name__)

RANK, ADAPTER_DROPOUT = 32, 0.0
RATE, WARMUP, TOKENS, AVERAGING = 3.0e-4, 60, 800, 0.997
UNKNOWN, WORD_DROPOUT, SMOOTHING = 100, 0.1, 0.1


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, [CLS] and [SEP] included."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


@torch.inference_mode()
def predict(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """The likelier label of each text."""
    rows = encode(tokenizer, texts)
    labels = [0] * len(rows)
    for batch in length_buckets([len(row) for row in rows], 2_000, random.Random(0)):
        logits = model(*padded([rows[row] for row in batch]))
        for row, label in zip(batch, logits.argmax(dim=1).tolist(), strict=True):
            labels[row] = label
    return labels


def train(options: Options) -> tuple[SequenceClassifier, Tokenizer, int]:
    """Train until the time is up; returns the averaged model and the number of steps."""
    generator = seed_everything(options.seed)
    texts, labels = zip(*read_sentiment(options.data, "train"), strict=True)
    check, expected = zip(*read_sentiment(options.data, "validation"), strict=True)
    tokenizer, trunk = trunk_with_adapter(RANK, ADAPTER_DROPOUT)
    model = SequenceClassifier(trunk, 2)
    seed_head(model)
    trainer = Trainer(model, averaging=AVERAGING, betas=(0.9, 0.999), seed=options.seed)
    rows, target = encode(tokenizer, texts), torch.tensor(labels)
    budget = Budget(options.minutes)
    epoch = 0
    while not budget.spent():
        for batch in length_buckets([len(row) for row in rows], TOKENS, generator):
            ids, mask = padded([rows[row] for row in batch])
            ids = ids.masked_fill((torch.rand(ids.shape) < WORD_DROPOUT) & (mask == 1), UNKNOWN)
            loss = functional.cross_entropy(model(ids, mask).float(), target[batch], label_smoothing=SMOOTHING)
            trainer.step(loss, RATE * warm_cosine(trainer.steps, budget.progress, WARMUP))
            if trainer.steps % 50 == 0:
                logger.info("step %d loss %.3f %.0f s", trainer.steps, loss.item(), budget.elapsed)
            if budget.spent():
                break
        epoch += 1
        score = accuracy(predict(trainer.average, tokenizer, check), expected)
        logger.info("epoch %d accuracy %.4f %.0f s", epoch, score, budget.elapsed)
    return trainer.average, tokenizer, trainer.steps


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options("Train sentiment.", minutes=8)
    budget = Budget(options.minutes)
    model, tokenizer, steps = train(options)
    save_adapted(options.out / "weights.safetensors", model)
    write_labels(options.out, ("negative", "positive"))
    texts, labels = zip(*read_sentiment(options.data, "validation"), strict=True)
    kept = load_sequence_classifier(options.out).eval()
    score = accuracy(predict(kept, tokenizer, texts), labels)
    logger.info("accuracy %.4f", score)
    write_record(
        options.out,
        model="sentiment",
        files=source_files("sentiment", options.data),
        split="train.tsv trains, dev.tsv validates",
        hyperparameters={
            "rank": RANK,
            "alpha": 2 * RANK,
            "adapter_dropout": ADAPTER_DROPOUT,
            "rate": RATE,
            "warmup": WARMUP,
            "tokens": TOKENS,
            "averaging": AVERAGING,
            "steps": steps,
            "word_dropout": WORD_DROPOUT,
            "label_smoothing": SMOOTHING,
            "optimizer": "AdamW",
            "weight_decay": 0.01,
            "precision": "bfloat16, float32 masters and attention",
        },
        score={"metric": "accuracy", "value": round(score, 4), "examples": len(labels)},
        seed=options.seed,
        seconds=budget.elapsed,
        libraries=("torch", "transformers", "peft", "tokenizers", "safetensors"),
    )


if __name__ == "__main__":
    main()
