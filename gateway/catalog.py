"""The models being served: ``model.yaml`` (the recipe, kept by hand) and ``card.json`` (the evidence
that the last build left beside it). The one schema of both; the zoo writes what the gateway reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.types import Datatype

TaskName = Literal[
    "image-classification",
    "text-classification",
    "token-classification",
    "question-answering",
    "translation",
    "feature-extraction",
]
"""Hugging Face's names of the tasks that a model can be built for. Sentence similarity and zero-shot
classification are served by feature-extraction models."""

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class CatalogError(Exception):
    """A recipe or a card that cannot be read; the message names the file and the field."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Schema):
    """One input or output as ``config.pbtxt`` names it; ``shape`` without the batch dimension."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False


class ImagePreprocessing(_Schema):
    """From a picture to uint8 NHWC; the numeric normalisation is inside the graph."""

    kind: Literal["image"] = "image"
    mode: Literal["RGB", "L"] = "RGB"
    resize_shorter_side: int | None = None
    """Pixels; None resizes straight to ``crop``."""
    crop: tuple[int, int]
    """Height and width of the centre crop, the model's input size."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    invert_light_background: bool = False
    """Digits: a dark stroke on light paper becomes light on dark, cropped and centred by mass (MNIST)."""


class TextPreprocessing(_Schema):
    """From a text to token ids, padded to one of ``buckets`` so that requests can share a batch."""

    kind: Literal["text"] = "text"
    tokenizer: str = "tokenizer.json"
    """A ``tokenizers`` file beside the recipe."""
    max_length: int = 256
    """Tokens, special ones included."""
    buckets: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 192, 256)
    """Ascending; the last equals ``max_length``."""
    pad_id: int = 0
    doc_stride: int = 64
    """Question answering: tokens that neighbouring windows share."""
    hypothesis_template: str = "This text is about {}."
    """Zero-shot classification over embeddings."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Embeddings: text put before the input, by name (``prompts`` of sentence-transformers)."""


class Batching(_Schema):
    """Triton's dynamic batcher (``dynamic_batching`` of ``config.pbtxt``)."""

    enabled: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0


class Instances(_Schema):
    """``instance_group``: how many copies, on what."""

    count: int = 1
    kind: Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU"] = "KIND_AUTO"


class Source(_Schema):
    """Where the weights come from."""

    kind: Literal["trained", "package", "hub", "local", "builtin"]
    """trained: this project's own weights under ``zoo/weights``; builtin: made by code (identity)."""
    name: str
    """Architecture module, package name, Hub id or folder."""
    revision: str | None = None
    trunk: str | None = None
    """The package that a trained adapter sits on."""


class Parity(_Schema):
    """How far the export may stray from the source model, and on what it is checked."""

    atol: float = 1e-4
    cosine: float | None = None
    """Instead of ``atol``, for quantised models: the least cosine between an output vector and the source's."""
    batch_sizes: tuple[int, ...] = (1, 2, 7)
    lengths: tuple[int, ...] = (8, 16, 64)
    """Tokens (text models only)."""
    text: str | None = None
    """Tokens are taken from here, not drawn at random: quantised models are meant for language only."""


class Evaluation(_Schema):
    """A task score measured with ``tidegate models evaluate``, and the floor it may not fall below."""

    metric: str
    value: float | None = None
    floor: float
    dataset: str
    split: str
    samples: int | None = None
    sha256: str | None = None
    """Of the data set's file(s)."""
    model_sha256: str | None = None
    """Of what was measured: the weights, and the fields of the recipe that decide an answer."""
    date: str | None = None


class Golden(_Schema):
    """An input of our own and the answer every build must give: the arguments of a task call."""

    inputs: Any
    options: dict[str, Any] = Field(default_factory=dict)
    expect: Any
    """label, answer, text or cosine, by task; see ``zoo/golden.py``."""
    tolerance: float | None = None
    task: str | None = None
    """The task that is called, where it is not the model's own (sentence-similarity on embeddings)."""


class Recipe(_Schema):
    """``model.yaml``."""

    name: str = Field(pattern=MODEL_NAME)
    version: int = 1
    task: TaskName | None = None
    """None: a model that is served raw, over the Open Inference Protocol only."""
    title: str
    description: str
    architecture: str
    source: Source
    format: Literal["onnx", "torchscript"]
    quantisation: Literal["none", "dynamic-int8"] = "none"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    score_function: Literal["softmax", "sigmoid", "none"] | None = None
    """Classification: from logits to scores; None: softmax, or sigmoid where there is one class."""
    languages: tuple[str, ...] = ()
    """ISO codes; a translation model's source language, then its target."""
    preprocessing: ImagePreprocessing | TextPreprocessing | None = Field(default=None, discriminator="kind")
    max_batch_size: int = 32
    """0: the model has no batch dimension."""
    batching: Batching = Batching()
    instances: Instances = Instances()
    parameters: dict[str, str] = Field(default_factory=dict)
    """``parameters`` of ``config.pbtxt``, e.g. intra_op_thread_count."""
    response_cache: bool = False
    licence: str
    notes: str = ""
    parity: Parity = Parity()
    evaluations: tuple[Evaluation, ...] = ()
    golden: tuple[Golden, ...] = ()


class Evidence(_Schema):
    """``card.json``: what the last build measured on this machine."""

    built_at: str
    """UTC, ISO 8601."""
    build_seconds: float
    model_file: str
    model_bytes: int
    model_sha256: str
    recipe_sha256: str
    parity_max_abs_error: float
    parity_min_cosine: float | None = None
    """Of an output vector with the source model's."""
    parity_cases: int
    golden_passed: int
    versions: dict[str, str]
    """torch, onnxruntime, … of the build."""
    build_key: str = ""
    """Of everything the build came from: what is compared to tell whether it is still current."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of what else lies beside the model file: config.pbtxt, tokenizer.json, labels.txt."""


class ModelCard:
    """A recipe, its evidence and the folder they live in."""

    def __init__(self, folder: Path, recipe: Recipe, evidence: Evidence | None) -> None:
        self.folder = folder
        self.recipe = recipe
        self.evidence = evidence

    @property
    def name(self) -> str:
        """The name Triton serves it under."""
        return self.recipe.name

    @property
    def model_file(self) -> Path:
        """``<folder>/<version>/model.onnx`` or ``model.pt``."""
        suffix = "onnx" if self.recipe.format == "onnx" else "pt"
        return self.folder / str(self.recipe.version) / f"model.{suffix}"

    @property
    def built(self) -> bool:
        """Whether a build has left a model file, a configuration and its evidence."""
        return self.evidence is not None and self.model_file.is_file() and (self.folder / "config.pbtxt").is_file()

    def public(self) -> dict[str, Any]:
        """What the API shows of the card: recipe and evidence, without the folder."""
        recipe = self.recipe.model_dump(mode="json", exclude={"golden", "parity"})
        recipe["evidence"] = self.evidence.model_dump(mode="json") if self.evidence else None
        return recipe


class Catalog:
    """The model cards of one model repository, by name."""

    def __init__(self, cards: dict[str, ModelCard]) -> None:
        self._cards = cards

    @classmethod
    def load(cls, repository: Path, only: tuple[str, ...] = ()) -> Catalog:
        """Read every ``model.yaml`` below ``repository``; ``only`` narrows it to those names.

        Raises :class:`CatalogError` for a missing folder, a bad recipe, or an unknown name in ``only``.
        """
        if not repository.is_dir():
            raise CatalogError(f"no model repository at {repository}")
        cards = {path.parent.name: read_card(path.parent) for path in sorted(repository.glob("*/model.yaml"))}
        missing = [name for name in only if name not in cards]
        if missing:
            raise CatalogError(
                f"no model named {', '.join(missing)} in {repository}; it has: {', '.join(cards) or 'none'}"
            )
        return cls({name: card for name, card in cards.items() if not only or name in only})

    def __iter__(self) -> Iterator[ModelCard]:
        return iter(self._cards.values())

    def __len__(self) -> int:
        return len(self._cards)

    def get(self, name: str) -> ModelCard | None:
        """The card called ``name``, or None."""
        return self._cards.get(name)


def read_card(folder: Path) -> ModelCard:
    """The card of one model folder. Raises :class:`CatalogError`."""
    path = folder / "model.yaml"
    try:
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise CatalogError(f"{path}: {where}: {problem['msg']}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path}: {' '.join(str(error).split())}") from error
    if recipe.name != folder.name:
        raise CatalogError(f"{path}: name is {recipe.name!r}, but the folder is {folder.name!r}")
    return ModelCard(folder, recipe, _read_evidence(folder / "card.json"))


def verify_hash(card: ModelCard) -> None:
    """Check every built file of ``card`` against the hashes that its build left.

    Raises :class:`CatalogError` naming the first file that is missing or is not the one that was
    validated. Reads the whole model file (some 400 MB/s without SHA extensions).
    """
    evidence = card.evidence
    if evidence is None:
        raise CatalogError(f"{card.name}: not built yet; `tidegate models build {card.name}` builds it")
    for name, expected in {evidence.model_file: evidence.model_sha256, **evidence.files}.items():
        path = card.folder / name
        try:
            found = file_sha256(path)
        except OSError as error:
            raise CatalogError(f"{card.name}: {path} cannot be read: {error.strerror or error}") from error
        if found != expected:
            raise CatalogError(
                f"{card.name}: {path} is not the file that was validated (its SHA-256 differs from card.json); "
                f"`tidegate models build {card.name} --force` builds it anew"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises ``OSError``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_evidence(path: Path) -> Evidence | None:
    if not path.is_file():
        return None
    try:
        return Evidence.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # ValidationError is a ValueError
        raise CatalogError(f"{path}: {error}") from error
