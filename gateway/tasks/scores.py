"""From logits to scores and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gateway.errors import BadUpstream
from gateway.tasks.answers import FloatArray, Label

ScoreFunction = Literal["sigmoid", "softmax", "none"]


def finite(values: FloatArray) -> FloatArray:
    """``values``, unchanged. Raises ``BadUpstream`` if one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise BadUpstream("the model answered a value that is not a number")
    return values


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def sigmoid(logits: FloatArray) -> FloatArray:
    """Logistic function; saturates instead of overflowing."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -80.0, 80.0))))


def apply(function: ScoreFunction, logits: FloatArray) -> FloatArray:
    """Scores of ``logits`` (last axis: classes)."""
    finite(logits)
    if function == "softmax":
        return softmax(logits)
    return sigmoid(logits) if function == "sigmoid" else logits


def default_function(recipe_function: ScoreFunction | None, classes: int) -> ScoreFunction:
    """What a model's scores are without an option: as its recipe says, else softmax, and sigmoid for one class."""
    if recipe_function is not None:
        return recipe_function
    return "softmax" if classes > 1 else "sigmoid"


def best_labels(scores: FloatArray, names: Sequence[str], top_k: int | None) -> list[list[Label]]:
    """Of each row of ``scores`` ``[rows, classes]`` the ``top_k`` best classes (None: all), best first.

    Equal scores keep the order of the classes.
    """
    order = np.argsort(-scores, axis=-1, kind="stable")
    if top_k is not None:
        order = order[:, :top_k]
    ranked = scores[np.arange(len(scores))[:, None], order].tolist()
    return [
        [Label(names[index], score) for index, score in zip(indices, values, strict=True)]
        for indices, values in zip(order.tolist(), ranked, strict=True)
    ]


def class_names(labels: Sequence[str], classes: int) -> Sequence[str]:
    """``labels`` if there is one a class, else ``LABEL_0`` … as Hugging Face names them."""
    return labels if len(labels) == classes else [f"LABEL_{index}" for index in range(classes)]


def normalise(vectors: FloatArray) -> FloatArray:
    """Rows of ``vectors`` at Euclidean length 1; a row of zeros stays."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    return np.asarray(vectors / np.maximum(lengths, 1e-12)[..., None])
