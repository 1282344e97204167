"""A recipe for a checkpoint in the layout of ``transformers``, from a hub or a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from gateway.catalog import (
    ImagePreprocessing,
    Instances,
    Parity,
    Recipe,
    Source,
    TaskName,
    TensorSpec,
    TextPreprocessing,
)
from zoo.checkpoints import AUTO_MODELS, OUTPUTS, fetch, load_config, load_image_processor, load_tokenizer
from zoo.errors import SourceError

LONGEST = 512
"""Tokens; more would need a recipe by hand."""

BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

INTERPOLATIONS = {2: "bilinear", 3: "bicubic", 1: "lanczos"}
"""Pillow's resampling numbers, which image processors use."""

OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
"""Architectures whose first positions are taken by the padding id: two fewer tokens than positions."""

IDS = TensorSpec(name="input_ids", datatype="INT64", shape=(-1,))
MASK = TensorSpec(name="attention_mask", datatype="INT64", shape=(-1,))
TYPES = TensorSpec(name="token_type_ids", datatype="INT64", shape=(-1,))


def describe(name: str, source: Source, task: str, *, labels: Sequence[str] = (), licence: str | None = None) -> Recipe:
    """The recipe of a checkpoint. ``labels`` replaces those of its configuration.

    Raises :class:`SourceError` with one line for a task or architecture that cannot be served.
    """
    if task not in AUTO_MODELS:
        raise SourceError(f"unknown task {task!r}; there are: {', '.join(get_args(TaskName))}")
    folder, commit = fetch(source)
    config = load_config(folder)
    found = config.architectures[0] if config.architectures else config.model_type
    common: dict[str, Any] = {
        "name": name,
        "task": task,
        "title": name,
        "description": f"{task} with {source.name}",
        "architecture": found,
        "source": source.model_copy(update={"revision": commit} if commit else {}),
        "licence": licence or read_licence(folder),
        "notes": "Added with `tidegate models add`; nothing but its numeric parity was measured here.",
        "languages": read_languages(folder),
        "max_batch_size": 16,
    }
    if task == "image-classification":
        return Recipe(**common, **_image_fields(folder, config, labels))
    if task == "translation":
        return Recipe(**common, **_translation_fields(folder, config))
    return Recipe(**common, **_text_fields(folder, config, task, labels))


def default_name(source: str) -> str:
    """A model name from a hub id or a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name).strip("-._") or "model"


def _text_fields(folder: Path, config: Any, task: str, labels: Sequence[str]) -> dict[str, Any]:
    names = class_names(config, labels) if task in ("text-classification", "token-classification") else ()
    shapes: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
        "text-classification": (("logits", (len(names),)),),
        "token-classification": (("logits", (-1, len(names))),),
        "question-answering": (("start_logits", (-1,)), ("end_logits", (-1,))),
        "feature-extraction": (
            ("sentence_embedding", (config.hidden_size,)),
            ("token_embeddings", (-1, config.hidden_size)),
        ),
    }
    inputs = (IDS, MASK, TYPES) if task in OUTPUTS and has_token_types(config) else (IDS, MASK)
    return {
        "format": "onnx",
        "inputs": inputs,
        "outputs": tuple(TensorSpec(name=name, datatype="FP32", shape=shape) for name, shape in shapes[task]),
        "labels": names,
        "score_function": "sigmoid" if config.problem_type == "multi_label_classification" else None,
        "preprocessing": _text_preprocessing(folder, config, task),
        "parity": Parity(atol=5e-4, batch_sizes=(1, 2, 5), lengths=(8, 32)),
    }


def _translation_fields(folder: Path, config: Any) -> dict[str, Any]:
    if config.model_type != "marian":
        raise SourceError(
            f"{folder.name}: translation with architecture {config.model_type!r} cannot be exported; MarianMT can"
        )
    return {
        "format": "torchscript",
        "inputs": (
            TensorSpec(name="input_ids__0", datatype="INT64", shape=(-1,)),
            TensorSpec(name="attention_mask__1", datatype="INT64", shape=(-1,)),
        ),
        "outputs": (
            TensorSpec(name="output_ids__0", datatype="INT64", shape=(-1,)),
            TensorSpec(name="scores__1", datatype="FP32", shape=(1,)),
        ),
        "preprocessing": _text_preprocessing(folder, config, "translation"),
        "instances": Instances(),
        "parameters": {"DISABLE_OPTIMIZED_EXECUTION": "true", "INFERENCE_MODE": "true"},
        "parity": Parity(atol=1e-3, batch_sizes=(1, 3), lengths=(3, 8)),
    }


def _image_fields(folder: Path, config: Any, labels: Sequence[str]) -> dict[str, Any]:
    if getattr(config, "num_channels", 3) != 3:
        raise SourceError(f"{folder.name}: a model of {config.num_channels} channels; three (RGB) are supported")
    names = class_names(config, labels)
    preprocessing = image_preprocessing(load_image_processor(folder), folder)
    return {
        "format": "onnx",
        "inputs": (TensorSpec(name="image", datatype="UINT8", shape=(*preprocessing.crop, 3)),),
        "outputs": (TensorSpec(name="logits", datatype="FP32", shape=(len(names),)),),
        "labels": names,
        "preprocessing": preprocessing,
        "parity": Parity(atol=1e-3, batch_sizes=(1, 2, 5)),
    }


def class_names(config: Any, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels given, or those of the configuration, in the order of the logits. Raises :class:`SourceError`."""
    own = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    if labels and len(labels) != len(own):
        raise SourceError(f"{len(labels)} labels were given, the checkpoint has {len(own)} classes")
    return tuple(labels) or own


def has_token_types(config: Any) -> bool:
    """Whether the model tells the first text of a pair from the second."""
    return getattr(config, "type_vocab_size", 0) > 1


def _text_preprocessing(folder: Path, config: Any, task: str) -> TextPreprocessing:
    longest = min(LONGEST, longest_text(folder, config))
    load_tokenizer(folder)  # one that cannot be had is better known before the recipe is written
    stride = {"doc_stride": min(128, longest // 3)} if task == "question-answering" else {}
    return TextPreprocessing(
        max_length=longest,
        buckets=(*(size for size in BUCKETS if size < longest), longest),
        pad_id=config.pad_token_id or 0,
        **stride,
    )


def longest_text(folder: Path, config: Any) -> int:
    """Tokens that the positions of the model and its tokenizer's settings allow."""
    positions: int = getattr(config, "max_position_embeddings", None) or LONGEST
    if config.model_type in OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    if config.model_type == "marian":
        positions = min(positions, 256)
    settings = _read_json(folder / "tokenizer_config.json").get("model_max_length")
    own = settings if isinstance(settings, int) and settings > 0 else positions
    sentences = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return min(positions, own, sentences if isinstance(sentences, int) else positions)


def image_preprocessing(processor: dict[str, Any], folder: Path) -> ImagePreprocessing:
    """What an image processor does before normalising, in the recipe's terms. Raises :class:`SourceError`."""
    interpolation = INTERPOLATIONS.get(int(processor.get("resample", 2)))
    if interpolation is None:
        raise SourceError(f"{folder.name}: resampling {processor['resample']} is not supported")
    size, shorter = dict(processor.get("size") or {}), None
    crop = dict(processor.get("crop_size") or {})
    if "shortest_edge" in size:
        shorter = edge = int(size["shortest_edge"])
        crop_pct = processor.get("crop_pct")
        if crop_pct:  # ConvNeXT and ResNet: the edge is that of the crop; from 384 on there is none
            shorter = int(edge / crop_pct) if edge < 384 else None
            crop = {"height": edge, "width": edge}
        elif not processor.get("do_center_crop") or not crop:
            crop = {"height": edge, "width": edge}
    elif "height" in size:
        straight = (int(size["height"]), int(size["width"]))
        if not processor.get("do_center_crop") or not crop or (crop["height"], crop["width"]) == straight:
            crop = size
        elif straight[0] == straight[1]:
            shorter = straight[0]
    if "height" not in crop:
        raise SourceError(f"{folder.name}: its image processor's size {size} is not supported")
    return ImagePreprocessing(
        resize_shorter_side=shorter, crop=(int(crop["height"]), int(crop["width"])), interpolation=interpolation
    )


def read_licence(folder: Path) -> str:
    """The licence that the model card names; ``unknown`` without one."""
    return str(_front_matter(folder).get("license", "unknown"))


def read_languages(folder: Path) -> tuple[str, ...]:
    """Languages that the model card names."""
    found = _front_matter(folder).get("language", ())
    return (found,) if isinstance(found, str) else tuple(str(language) for language in found or ())


def _front_matter(folder: Path) -> dict[str, Any]:
    path = folder / "README.md"
    if not path.is_file():
        return {}
    found = re.match(r"\A---\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    return _mapping(found.group(1)) if found else {}


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
