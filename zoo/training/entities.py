"""Train entities, an adapter on the trunk, on wikigold: python -m zoo.training.entities"""

import logging
import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from zoo.architectures.heads import TokenClassifier
from zoo.architectures.loading import load_token_classifier
from zoo.training.adaptation import save_adapted, seed_head, trunk_with_adapter
from zoo.training.common import (
    Budget,
    Options,
    Trainer,
    length_buckets,
    pad_rows,
    padded,
    parse_options,
    seed_everything,
    warm_cosine,
    write_labels,
    write_record,
)
from zoo.training.datasets import TaggedSentence, read_entities, source_files
from zoo.training.evaluation import entity_f1

logger = logging.getLogger(__name__)

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
IGNORED, UNKNOWN, LONGEST = -100, 100, 256
RANK, ADAPTER_DROPOUT = 32, 0.0
RATE, WARMUP, TOKENS, AVERAGING, WORD_DROPOUT = 7.0e-4, 60, 1_200, 0.995, 0.1


def to_bio(tags: Sequence[str]) -> list[str]:
    """IOB1 tags in BIO, where every entity begins with B-."""
    bio: list[str] = []
    for before, tag in pairwise(["O", *tags]):
        starts = tag.startswith("I-") and before[2:] != tag[2:]
        bio.append(f"B-{tag[2:]}" if starts else tag)
    return bio


def encode(tokenizer: Tokenizer, sentence: TaggedSentence) -> tuple[list[int], list[int]]:
    """Ids, and for each the number of the word it begins, else -1."""
    encoding = tokenizer.encode(sentence.words, is_pretokenized=True)
    words = encoding.word_ids[:LONGEST]
    begins = [-1 if word is None or word == before else word for before, word in pairwise([None, *words])]
    return encoding.ids[:LONGEST], begins


def targets_of(sentence: TaggedSentence, begins: Sequence[int]) -> list[int]:
    """A label for the first piece of each word; the others are IGNORED."""
    tags = to_bio(sentence.tags)
    return [IGNORED if word < 0 else LABELS.index(tags[word]) for word in begins]


@torch.inference_mode()
def predict(model: nn.Module, tokenizer: Tokenizer, sentences: Sequence[TaggedSentence]) -> list[list[str]]:
    """Tags of each sentence's words; words beyond LONGEST pieces get O."""
    rows = [encode(tokenizer, sentence) for sentence in sentences]
    tags = [["O"] * len(sentence.words) for sentence in sentences]
    for batch in length_buckets([len(ids) for ids, _ in rows], 2_000, random.Random(0)):
        best = model(*padded([rows[row][0] for row in batch])).argmax(dim=2).tolist()
        for row, choices in zip(batch, best, strict=True):
            for word, choice in zip(rows[row][1], choices, strict=False):
                if word >= 0:
                    tags[row][word] = LABELS[choice]
    return tags


def score_of(model: nn.Module, tokenizer: Tokenizer, sentences: Sequence[TaggedSentence]) -> float:
    """Entity F1 of the model's tags."""
    return entity_f1(predict(model, tokenizer, sentences), [sentence.tags for sentence in sentences])


def train(options: Options) -> tuple[TokenClassifier, Tokenizer, int]:
    """Train until the time is up; returns the averaged model and the number of steps."""
    generator = seed_everything(options.seed)
    sentences = read_entities(options.data, "train")
    check = read_entities(options.data, "validation")
    tokenizer, trunk = trunk_with_adapter(RANK, ADAPTER_DROPOUT)
    model = TokenClassifier(trunk, len(LABELS))
    seed_head(model)
    trainer = Trainer(model, averaging=AVERAGING, betas=(0.9, 0.999), seed=options.seed)
    rows = [encode(tokenizer, sentence) for sentence in sentences]
    targets = [targets_of(s, begins) for s, (_, begins) in zip(sentences, rows, strict=True)]
    budget = Budget(options.minutes)
    epoch = 0
    while not budget.spent():
        for batch in length_buckets([len(ids) for ids, _ in rows], TOKENS, generator):
            ids, mask = padded([rows[row][0] for row in batch])
            ids = ids.masked_fill((torch.rand(ids.shape) < WORD_DROPOUT) & (mask == 1), UNKNOWN)
            target = pad_rows([targets[row] for row in batch], IGNORED)
            loss = functional.cross_entropy(
                model(ids, mask).float().flatten(0, 1), target.flatten(), ignore_index=IGNORED
            )
            trainer.step(loss, RATE * warm_cosine(trainer.steps, budget.progress, WARMUP))
            if budget.spent():
                break
        epoch += 1
        score = score_of(trainer.average, tokenizer, check)
        logger.info("epoch %d loss %.3f F1 %.4f %.0f s", epoch, loss.item(), score, budget.elapsed)
    return trainer.average, tokenizer, trainer.steps


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options("Train entities.", minutes=5)
    budget = Budget(options.minutes)
    model, tokenizer, steps = train(options)
    save_adapted(options.out / "weights.safetensors", model)
    write_labels(options.out, LABELS)
    sentences = read_entities(options.data, "validation")
    score = score_of(load_token_classifier(options.out).eval(), tokenizer, sentences)
    logger.info("entity F1 %.4f", score)
    write_record(
        options.out,
        model="entities",
        files=source_files("entities", options.data),
        split="first 80 % of the sentences train, last 20 % validate",
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
            "tags": "BIO",
            "optimizer": "AdamW",
            "weight_decay": 0.01,
            "precision": "bfloat16, float32 masters and attention",
        },
        score={"metric": "entity_f1", "value": round(score, 4), "examples": len(sentences)},
        seed=options.seed,
        seconds=budget.elapsed,
        libraries=("torch", "transformers", "peft", "tokenizers", "safetensors"),
    )


if __name__ == "__main__":
    main()
