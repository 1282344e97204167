"""Checkpoints in the layout of ``transformers``: a folder, or a repository of a hub that is fetched into one.

Only safetensors are loaded and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from gateway.catalog import Source, TaskName
from zoo.architectures.heads import mean_pool
from zoo.errors import SourceError
from zoo.export import first_line
from zoo.freshness import CHECKPOINT_FILES
from zoo.marian import from_transformers
from zoo.spm import marian_tokenizer

AUTO_MODELS: dict[TaskName, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "feature-extraction": AutoModel,
    "image-classification": AutoModelForImageClassification,
    "translation": AutoModelForSeq2SeqLM,
}
"""The loader of each task that a checkpoint may be added for."""

OUTPUTS: dict[TaskName, tuple[str, ...]] = {
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
}

POOLINGS = ("mean", "cls")


class TextModel(nn.Module):
    """A transformer that returns some of its outputs as a tuple, in their order."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """All arguments int64 ``[batch, seq]``."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(getattr(found, name) for name in self.outputs)


class SentenceModel(nn.Module):
    """Token embeddings ``[batch, seq, width]`` and the one vector of each text that they are pooled to."""

    def __init__(self, model: nn.Module, pooling: str = "mean") -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """int64 ``[batch, seq]`` to ``[batch, width]``, not normalised, and ``[batch, seq, width]``."""
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return tokens[:, 0], tokens
        return mean_pool(tokens, attention_mask), tokens


class ImageModel(nn.Module):
    """An image classifier that takes uint8 NHWC: ``(x * scale - mean) / std`` happens inside."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 ``[batch, height, width, channels]`` to logits ``[batch, classes]``."""
        pixels = image.permute(0, 3, 1, 2).to(torch.float32) * self.scale
        found = self.model((pixels - self.mean) / self.std)
        return cast(Tensor, found if isinstance(found, Tensor) else found.logits)


class TranslationModel(nn.Module):
    """A translator whose scores carry the dimension that Triton wants: ``[batch, 1]``."""

    def __init__(self, translator: nn.Module) -> None:
        super().__init__()
        self.translator = translator

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """int64 ``[batch, seq]`` to output ids ``[batch, out]`` and scores ``[batch, 1]``."""
        output_ids, scores = self.translator(input_ids, attention_mask)
        return output_ids, scores.unsqueeze(1)


def fetch(source: Source) -> tuple[Path, str | None]:
    """The folder of a local or hub checkpoint, and the hub's commit of it.

    Raises :class:`SourceError` with one line for whatever keeps it away.
    """
    if source.kind == "local":
        folder = Path(source.name)
        if not folder.is_dir():
            raise SourceError(f"no checkpoint at {folder}")
    else:
        folder = download(source.name, source.revision)
    if not (folder / "config.json").is_file():
        raise SourceError(f"{source.name} is not a transformers checkpoint: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise SourceError(f"{source.name} has no safetensors weights, and pickled ones are never loaded")
    return folder, folder.name if source.kind == "hub" else None


def download(name: str, revision: str | None = None, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """A hub's repository in the local cache, fetched if it is not there; its folder's name is the commit.

    ``endpoint`` and ``cache`` are those of the environment (HF_ENDPOINT, HF_HOME) unless given. Pickles are not
    fetched. Raises :class:`SourceError` with one line.
    """
    try:
        with quiet():
            found = snapshot_download(
                name, revision=revision, allow_patterns=list(CHECKPOINT_FILES), endpoint=endpoint, cache_dir=cache
            )
    except HFValidationError as error:
        raise SourceError(f"{name!r} is neither a folder nor a name of a hub: {first_line(error)}") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise SourceError(f"the hub has no model {name!r} that this machine may read (a token in HF_TOKEN?)") from error
    except RevisionNotFoundError as error:
        raise SourceError(f"the hub has no revision {revision!r} of {name!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        asked = endpoint or constants.ENDPOINT
        raise SourceError(f"{name}: no hub is reachable at {asked}, and no copy of it is on this machine") from error
    return Path(found)


def load_config(folder: Path) -> Any:
    """The checkpoint's ``transformers`` configuration. Raises :class:`SourceError`."""
    with _loading(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def load_module(folder: Path, task: TaskName) -> nn.Module:
    """The checkpoint as the module that is exported for ``task``. Raises :class:`SourceError`."""
    config = load_config(folder)
    if task == "translation" and config.model_type != "marian":
        raise SourceError(
            f"{folder.name}: translation with architecture {config.model_type!r} cannot be exported; MarianMT can"
        )
    if task not in AUTO_MODELS:
        raise SourceError(f"checkpoints cannot be added for task {task!r}; there are: {', '.join(AUTO_MODELS)}")
    with _loading(folder):
        model, report = AUTO_MODELS[task].from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True,
            **_attention(task),
        )  # fmt: skip
    missing = sorted(name for name in report["missing_keys"] if ".pooler." not in f".{name}")
    if missing:
        raise SourceError(f"{folder.name}: the checkpoint has no weights for {missing[0]}; was it trained for {task}?")
    model.eval()
    if task == "translation":
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        return TranslationModel(from_transformers(model, unknown=vocabulary["<unk>"]))
    if task == "image-classification":
        return ImageModel(model, *normalisation(load_image_processor(folder)))
    if task == "feature-extraction":
        return SentenceModel(model, read_pooling(folder))
    return TextModel(model, OUTPUTS[task])


def _attention(task: TaskName) -> dict[str, str]:
    """Plain attention exports to the plainest graph; a convolutional classifier has none to choose."""
    return {} if task == "image-classification" else {"attn_implementation": "eager"}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, without truncation and padding. Raises :class:`SourceError`."""
    config = load_config(folder)
    if config.model_type == "marian":
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        names = {number: token for token, number in vocabulary.items()}
        return marian_tokenizer(
            folder, unknown="<unk>", end=names[config.eos_token_id], padding=names[config.pad_token_id]
        )
    with _loading(folder):
        found: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not found.is_fast:
        raise SourceError(f"{folder.name}: its tokenizer {type(found).__name__} has no tokenizers (fast) form")
    tokenizer = Tokenizer.from_str(found.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_image_processor(folder: Path) -> dict[str, Any]:
    """The settings of the checkpoint's image processor. Raises :class:`SourceError`."""
    with _loading(folder):
        loader: Any = AutoImageProcessor
        found: dict[str, Any] = loader.from_pretrained(folder, trust_remote_code=False, backend="pil").to_dict()
        return found


def normalisation(processor: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean and standard deviation of each channel and the factor before them."""
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale
    return tuple(processor["image_mean"]), tuple(processor["image_std"]), scale


def read_pooling(folder: Path) -> str:
    """How a sentence-transformers checkpoint pools; ``mean`` for one that does not say."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    settings = json.loads(path.read_text(encoding="utf-8"))
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    pooling = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in pooling:
        raise SourceError(f"{folder.name}: pooling {', '.join(modes)} is not supported; {' and '.join(POOLINGS)} are")
    return pooling[modes[0]]


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever ``transformers`` raises, as one line."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise SourceError(f"{folder.name}: transformers cannot load it: {first_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and notes of the libraries between ours."""
    notes: Any = transformers_logging
    level = notes.get_verbosity()
    bars = notes.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notes.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            notes.enable_progress_bar()
