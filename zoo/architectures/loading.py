"""From a model's name to the module that is exported, in eval mode."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from zoo.architectures.adapter import merge_adapter
from zoo.architectures.digits import Digits
from zoo.architectures.heads import (
    SentenceEncoder,
    SequenceClassifier,
    SpanExtractor,
    TokenClassifier,
)
from zoo.architectures.storage import load_weights
from zoo.architectures.topics import Topics
from zoo.architectures.translation import Translation, TranslationConfig, Translator
from zoo.architectures.trunk import load_trunk

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

NAMES = (
    "digits",
    "topics-zh",
    "translate-zh-en",
    "translate-en-fr",
    "qa",
    "sentiment",
    "entities",
    "embeddings",
)


def load(name: str, folder: Path = WEIGHTS) -> nn.Module:
    """The model of that name with its weights, ready to export.

    folder: where each model has a folder of its own. Raises KeyError for an unknown name and
    FileNotFoundError where the weights are missing.
    """
    builders = {
        "digits": load_digits,
        "topics-zh": load_topics,
        "translate-zh-en": load_translator,
        "translate-en-fr": load_translator,
        "qa": load_span_extractor,
        "sentiment": load_sequence_classifier,
        "entities": load_token_classifier,
        "embeddings": load_sentence_encoder,
    }
    return builders[name](folder / name).eval().requires_grad_(False)


def labels(name: str, folder: Path = WEIGHTS) -> list[str]:
    """The labels of a classifier in the order of its logits."""
    return (folder / name / "labels.txt").read_text(encoding="utf-8").splitlines()


def load_digits(folder: Path) -> nn.Module:
    """A Digits with the weights in `folder`."""
    model = Digits()
    model.load_state_dict(load_weights(folder / "weights.safetensors"))
    return model


def load_topics(folder: Path) -> nn.Module:
    """A Topics with the weights in `folder`."""
    model = Topics()
    model.load_state_dict(load_weights(folder / "weights.safetensors"))
    return model


def load_translator(folder: Path) -> nn.Module:
    """A Translator with the sizes, search and weights in `folder`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Translation(TranslationConfig(**config["model"]))
    model.load_state_dict(load_weights(folder / "weights.safetensors"))
    return Translator(model, **config["search"])


def load_span_extractor(folder: Path) -> nn.Module:
    """A SpanExtractor: the trunk, with the adapter and head in `folder`."""
    return adapt(SpanExtractor(load_trunk()[1]), load_weights(folder / "weights.safetensors"))


def load_sequence_classifier(folder: Path) -> nn.Module:
    """A SequenceClassifier: the trunk, with the adapter and head in `folder`."""
    state = load_weights(folder / "weights.safetensors")
    return adapt(SequenceClassifier(load_trunk()[1], len(state["head.bias"])), state)


def load_token_classifier(folder: Path) -> nn.Module:
    """A TokenClassifier: the trunk, with the adapter and head in `folder`."""
    state = load_weights(folder / "weights.safetensors")
    return adapt(TokenClassifier(load_trunk()[1], len(state["head.bias"])), state)


def load_sentence_encoder(_folder: Path) -> nn.Module:
    """A SentenceEncoder: the trunk alone, which has no weights of the project's own."""
    return SentenceEncoder(load_trunk()[1])


def adapt(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Merge a stored adapter into the model's trunk and fill its head, in place."""
    model.get_submodule("head").load_state_dict(part(state, "head."))
    merge_adapter(model.get_submodule("trunk"), part(state, "trunk."))
    return model


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, which is taken off."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
