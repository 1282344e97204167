"""Train qa, an adapter on the trunk, on SQuAD 1.1 and QED: python -m zoo.training.qa"""

import logging
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from zoo.architectures.heads import SpanExtractor
from zoo.architectures.loading import load_span_extractor
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
    write_record,
)
from zoo.training.datasets import Question, read_questions, source_files
from zoo.training.evaluation import squad_f1_em
from zoo.training.windows import LONGEST, STRIDE, Window, best_answer, make_windows

logger = logging.getLogger(__name__)

RANK, ADAPTER_DROPOUT = 64, 0.0
RATE, WARMUP, TOKENS, AVERAGING = 6.0e-4, 150, 3_000, 0.997
WITHOUT_ANSWER = 0.15
QUICK_CHECK = 300

Example = tuple[Window, tuple[int, int]]


def examples_of(
    questions: Sequence[Question], windows: Sequence[Sequence[Window]], generator: random.Random
) -> list[Example]:
    """Windows with the answer's first and last position, one of its annotations at random.

    Of the windows without the answer a share of WITHOUT_ANSWER stays and points to [CLS].
    """
    examples: list[Example] = []
    for question, own in zip(questions, windows, strict=True):
        text, start = generator.choice(question.answers)
        for window in own:
            span = window.locate(start, start + len(text))
            if span is not None:
                examples.append((window, span))
            elif generator.random() < WITHOUT_ANSWER:
                examples.append((window, (0, 0)))
    return examples


def tensors_of(windows: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and token_type_ids, int64 [batch, seq]."""
    ids, mask = padded([window.ids for window in windows])
    return ids, mask, pad_rows([window.token_types for window in windows])


def loss_of(logits: tuple[Tensor, Tensor], mask: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Mean cross-entropy of the two positions over the real tokens."""
    target = torch.tensor(spans)
    hidden = mask == 0
    start, end = (part.float().masked_fill(hidden, -1e9) for part in logits)
    return (functional.cross_entropy(start, target[:, 0]) + functional.cross_entropy(end, target[:, 1])) / 2


@torch.inference_mode()
def answer(model: nn.Module, tokenizer: Tokenizer, questions: Sequence[Question]) -> dict[str, str]:
    """The answer to each question, by its id."""
    windows = [make_windows(tokenizer, question) for question in questions]
    flat = [(row, window) for row, own in enumerate(windows) for window in own]
    logits: list[list[tuple[Tensor, Tensor]]] = [[] for _ in questions]
    order = sorted(range(len(flat)), key=lambda index: len(flat[index][1].ids))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        starts, ends = model(*tensors_of([flat[index][1] for index in chosen]))
        for place, index in enumerate(chosen):
            found[index] = (starts[place], ends[place])
    for index, (row, _) in enumerate(flat):
        logits[row].append(found[index])
    return {
        question.id: best_answer(question, own, scores)
        for question, own, scores in zip(questions, windows, logits, strict=True)
    }


def score_of(model: nn.Module, tokenizer: Tokenizer, questions: Sequence[Question]) -> tuple[float, float]:
    """F1 and exact match of the model's answers."""
    accepted = {question.id: [text for text, _ in question.answers] for question in questions}
    return squad_f1_em(answer(model, tokenizer, questions), accepted)


def train(options: Options) -> tuple[SpanExtractor, Tokenizer, int]:
    """Train until the time is up; returns the averaged model and the number of steps."""
    generator = seed_everything(options.seed)
    questions = read_questions(options.data, "train")
    check = generator.sample(read_questions(options.data, "validation"), QUICK_CHECK)
    tokenizer, trunk = trunk_with_adapter(RANK, ADAPTER_DROPOUT)
    model = SpanExtractor(trunk)
    seed_head(model)
    trainer = Trainer(model, averaging=AVERAGING, betas=(0.9, 0.999), seed=options.seed)
    windows = [make_windows(tokenizer, question) for question in questions]
    budget = Budget(options.minutes)
    epoch = 0
    while not budget.spent():
        examples = examples_of(questions, windows, generator)
        for batch in length_buckets([len(w.ids) for w, _ in examples], TOKENS, generator):
            ids, mask, types = tensors_of([examples[row][0] for row in batch])
            loss = loss_of(model(ids, mask, types), mask, [examples[row][1] for row in batch])
            trainer.step(loss, RATE * warm_cosine(trainer.steps, budget.progress, WARMUP))
            if trainer.steps % 50 == 0:
                logger.info("step %d loss %.3f %.0f s", trainer.steps, loss.item(), budget.elapsed)
            if budget.spent():
                break
        epoch += 1
        f1, exact = score_of(trainer.average, tokenizer, check)
        logger.info("epoch %d F1 %.1f EM %.1f %.0f s", epoch, f1, exact, budget.elapsed)
        save_adapted(options.out / "weights.safetensors", trainer.average)
    return trainer.average, tokenizer, trainer.steps


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options("Train qa.", minutes=40)
    budget = Budget(options.minutes)
    _, tokenizer, steps = train(options)
    kept = load_span_extractor(options.out).eval()
    questions = read_questions(options.data, "validation")
    f1, exact = score_of(kept, tokenizer, questions)
    logger.info("F1 %.2f EM %.2f", f1, exact)
    write_record(
        options.out,
        model="qa",
        files=source_files("qa", options.data),
        split="squad11_train.json and qed_train.json train, squad11_validation.json validates",
        hyperparameters={
            "rank": RANK,
            "alpha": 2 * RANK,
            "adapter_dropout": ADAPTER_DROPOUT,
            "rate": RATE,
            "warmup": WARMUP,
            "tokens": TOKENS,
            "averaging": AVERAGING,
            "steps": steps,
            "longest": LONGEST,
            "stride": STRIDE,
            "without_answer": WITHOUT_ANSWER,
            "token_type_ids": "question 0, context 1",
            "optimizer": "AdamW",
            "weight_decay": 0.01,
            "precision": "bfloat16, float32 masters and attention",
        },
        score={
            "metric": "squad",
            "f1": round(f1, 2),
            "exact_match": round(exact, 2),
            "examples": len(questions),
        },
        seed=options.seed,
        seconds=budget.elapsed,
        libraries=("torch", "transformers", "peft", "tokenizers", "safetensors"),
    )


if __name__ == "__main__":
    main()
