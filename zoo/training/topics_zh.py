"""Train topics-zh on Chinese product reviews: python -m zoo.training.topics_zh"""

import logging
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from zoo.architectures.storage import load_weights, save_weights
from zoo.architectures.topics import Topics
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
from zoo.training.datasets import TOPICS, read_topics, source_files
from zoo.training.evaluation import accuracy
from zoo.training.pieces import train_bpe

logger = logging.getLogger(__name__)

VOCABULARY, LONGEST = 10_000, 192
RATE, WARMUP, TOKENS, AVERAGING = 2.0e-3, 200, 2_500, 0.999
PIECE_DROPOUT, WORD_DROPOUT, SMOOTHING = 0.1, 0.05, 0.05


def make_tokenizer(reviews: Sequence[str]) -> Tokenizer:
    """BPE of 10,000 entries; cuts a review after LONGEST ids."""
    tokenizer = train_bpe(reviews, VOCABULARY, limit_alphabet=4_000)
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def encode(tokenizer: Tokenizer, reviews: Sequence[str], dropout: float = 0.0) -> list[list[int]]:
    """Ids of each review; one that holds nothing becomes a single <unk>."""
    tokenizer.model.dropout = dropout or None
    rows = [encoding.ids or [1] for encoding in tokenizer.encode_batch(list(reviews))]
    tokenizer.model.dropout = None
    return rows


@torch.inference_mode()
def predict(model: Topics, tokenizer: Tokenizer, reviews: Sequence[str]) -> list[int]:
    """The number of the likeliest product kind of each review."""
    rows = encode(tokenizer, reviews)
    labels = [0] * len(rows)
    for batch in length_buckets([len(row) for row in rows], 16_000, random.Random(0)):
        logits = model(*padded([rows[row] for row in batch]))
        for row, label in zip(batch, logits.argmax(dim=1).tolist(), strict=True):
            labels[row] = label
    return labels


def train(options: Options) -> tuple[Topics, Tokenizer, int]:
    """Train until the time is up; returns the averaged model and the number of steps."""
    generator = seed_everything(options.seed)
    reviews, labels = zip(*read_topics(options.data, "train"), strict=True)
    check, expected = zip(*read_topics(options.data, "validation"), strict=True)
    tokenizer = make_tokenizer(reviews)
    model = Topics(tokenizer.get_vocab_size())
    trainer = Trainer(model, averaging=AVERAGING, dtype=torch.float32, seed=options.seed)
    target = torch.tensor(labels)
    budget = Budget(options.minutes)
    epoch = 0
    while not budget.spent():
        rows = encode(tokenizer, reviews, PIECE_DROPOUT)
        for batch in length_buckets([len(row) for row in rows], TOKENS, generator):
            ids, mask = padded([rows[row] for row in batch])
            ids = ids.masked_fill((torch.rand(ids.shape) < WORD_DROPOUT) & (mask == 1), 1)
            rate = RATE * warm_cosine(trainer.steps, budget.progress, WARMUP)
            loss = functional.cross_entropy(model(ids, mask), target[batch], label_smoothing=SMOOTHING)
            trainer.step(loss, rate)
            if budget.spent():
                break
        epoch += 1
        score = accuracy(predict(trainer.average, tokenizer, check), expected)
        logger.info("epoch %d step %d accuracy %.4f %.0f s", epoch, trainer.steps, score, budget.elapsed)
    return trainer.average, tokenizer, trainer.steps


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options("Train topics-zh.", minutes=10)
    budget = Budget(options.minutes)
    model, tokenizer, steps = train(options)
    weights = options.out / "weights.safetensors"
    save_weights(weights, model.state_dict())
    tokenizer.save(str(options.out / "tokenizer.json"))
    write_labels(options.out, TOPICS.values())
    model.load_state_dict(load_weights(weights))
    reviews, labels = zip(*read_topics(options.data, "validation"), strict=True)
    score = accuracy(predict(model, tokenizer, reviews), labels)
    logger.info("accuracy %.4f", score)
    write_record(
        options.out,
        model="topics-zh",
        files=source_files("topics-zh", options.data),
        split="train.csv trains, validation.csv validates",
        hyperparameters={
            "rate": RATE,
            "warmup": WARMUP,
            "tokens": TOKENS,
            "averaging": AVERAGING,
            "steps": steps,
            "optimizer": "AdamW",
            "weight_decay": 0.01,
            "label_smoothing": SMOOTHING,
            "piece_dropout": PIECE_DROPOUT,
            "word_dropout": WORD_DROPOUT,
            "longest": LONGEST,
        },
        score={"metric": "accuracy", "value": round(score, 4), "examples": len(labels)},
        seed=options.seed,
        seconds=budget.elapsed,
    )


if __name__ == "__main__":
    main()
