"""Train digits on 8,000 handwritten digits: python -m zoo.training.digits"""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from zoo.architectures.digits import Digits
from zoo.architectures.storage import load_weights, save_weights
from zoo.training.common import (
    Budget,
    Options,
    Trainer,
    parse_options,
    seed_everything,
    warm_cosine,
    write_labels,
    write_record,
)
from zoo.training.datasets import read_digits, source_files
from zoo.training.evaluation import accuracy

logger = logging.getLogger(__name__)

RATE, WARMUP, BATCH, AVERAGING = 2.0e-3, 100, 64, 0.999
ANGLE, SCALE, SHEAR, SHIFT = math.radians(15), 0.12, 0.15, 0.16


def distort(images: Tensor) -> Tensor:
    """Small random rotations, scales, shears and shifts of uint8 images [batch, 28, 28, 1]."""
    count = len(images)

    def spread(limit: float) -> Tensor:
        return (torch.rand(count) * 2 - 1) * limit

    angle, scale, shear = spread(ANGLE), 1 + spread(SCALE), spread(SHEAR)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = (
        torch.stack((cosine, shear - sine, spread(SHIFT)), dim=1),
        torch.stack((sine, cosine, spread(SHIFT)), dim=1),
    )
    pixels = images.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def train(options: Options) -> tuple[Digits, int]:
    """Train until the time is up; returns the averaged model and the number of steps."""
    images, labels = (torch.tensor(array) for array in read_digits(options.data, "train"))
    model = Digits()
    trainer = Trainer(model, averaging=AVERAGING, dtype=torch.float32, seed=options.seed)
    budget = Budget(options.minutes)
    while not budget.spent():
        rows = torch.randint(len(images), (BATCH,))
        rate = RATE * warm_cosine(trainer.steps, budget.progress, WARMUP)
        loss = functional.cross_entropy(model(distort(images[rows])), labels[rows], label_smoothing=0.05)
        trainer.step(loss, rate)
        if trainer.steps % 500 == 0:
            logger.info("step %d loss %.3f %.0f s", trainer.steps, loss.item(), budget.elapsed)
    return trainer.average, trainer.steps


@torch.inference_mode()
def score_of(model: Digits, folder: Path) -> tuple[float, int]:
    """Accuracy on the validation images, and their number."""
    images, labels = read_digits(folder, "validation")
    best = model(torch.tensor(images)).argmax(dim=1)
    return accuracy(best.tolist(), labels.tolist()), len(labels)


def main() -> None:
    """Train, save, measure the weights as they are kept, and write the record."""
    options = parse_options("Train digits.", minutes=4)
    seed_everything(options.seed)
    budget = Budget(options.minutes)
    model, steps = train(options)
    save_weights(options.out / "weights.safetensors", model.state_dict())
    write_labels(options.out, [str(digit) for digit in range(10)])
    model.load_state_dict(load_weights(options.out / "weights.safetensors"))
    score, count = score_of(model, options.data)
    logger.info("accuracy %.4f", score)
    write_record(
        options.out,
        model="digits",
        files=source_files("digits", options.data),
        split="first 8,000 images train, last 2,000 validate",
        hyperparameters={
            "rate": RATE,
            "warmup": WARMUP,
            "batch": BATCH,
            "averaging": AVERAGING,
            "steps": steps,
            "optimizer": "AdamW",
            "weight_decay": 0.01,
            "label_smoothing": 0.05,
            "dropout": 0.3,
            "rotation_degrees": 15,
            "scale": SCALE,
            "shear": SHEAR,
            "shift": SHIFT,
        },
        score={"metric": "accuracy", "value": round(score, 4), "examples": count},
        seed=options.seed,
        seconds=budget.elapsed,
    )


if __name__ == "__main__":
    main()
