"""Builds a model: source, export, validation, configuration; then, and only then, into its place.

A build writes into a folder beside its destination and renames at the end, ``card.json`` last; whatever
stops it leaves the model as it was, or without a card, which no server loads.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from filelock import FileLock

from gateway.catalog import Evidence, ModelCard, Recipe, file_sha256, read_card
from gateway.settings import Settings
from zoo.config import LABELS_FILE, MODEL_FILES, config_pbtxt
from zoo.errors import ValidationError, ZooError
from zoo.export import export
from zoo.freshness import build_key, is_fresh, library_versions, recipe_sha256, scored_sha256
from zoo.golden import check_golden
from zoo.runtime import TaskRunner, load_runner
from zoo.sources import load_source
from zoo.validate import ParityResult, check_parity, sample_inputs

STEPS = ("source", "export", "parity", "golden", "config")
LOCK = ".build.lock"
STAGING = ".build-"

Step = Callable[[str], None]
"""Told the name of each step (see :data:`STEPS`) as it begins."""


@dataclass(frozen=True)
class Outcome:
    """What became of one model."""

    card: ModelCard
    built: bool
    """False: another process had built it meanwhile."""


class Builder:
    """Builds the models of a repository, one after the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def build(self, card: ModelCard, *, force: bool = False, step: Step = lambda _: None) -> Outcome:
        """Build ``card`` unless it is fresh. Raises :class:`ZooError` with one line.

        Two processes that want the same model wait for each other; the second finds it built.
        """
        with _disk_errors(card), FileLock(card.folder / LOCK):
            card = read_card(card.folder)
            if not force and is_fresh(card):
                return Outcome(card, built=False)
            for left_over in card.folder.glob(f"{STAGING}*"):
                shutil.rmtree(left_over)
            staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=card.folder))
            try:
                evidence = self._build_into(staging, card, step)
                _install(staging, card, evidence)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return Outcome(read_card(card.folder), built=True)

    def _build_into(self, staging: Path, card: ModelCard, step: Step) -> Evidence:
        started = time.monotonic()
        recipe = card.recipe
        _check_scores(recipe)
        key = build_key(recipe)
        step("source")
        source = load_source(recipe)
        if source.tokenizer is not None:
            (staging / "tokenizer.json").write_text(source.tokenizer.to_str(), encoding="utf-8")
        step("export")
        arrays = sample_inputs(recipe, 2, 12, source.tokenizer)
        samples = {name: torch.from_numpy(array) for name, array in arrays.items()}
        model_file = f"{recipe.version}/{MODEL_FILES[recipe.format]}"
        path = staging / model_file
        path.parent.mkdir()
        path.write_bytes(export(source.module, recipe, samples, scripted=source.scripted))
        step("parity")
        runner = load_runner(path, recipe)
        parity = check_parity(source.module, runner, recipe, source.tokenizer)
        step("golden")
        staged = ModelCard(staging, recipe, None)
        golden = check_golden(staged, TaskRunner(staged, runner, self._settings))
        step("config")
        (staging / "config.pbtxt").write_text(config_pbtxt(recipe), encoding="utf-8")
        if recipe.labels:
            (staging / LABELS_FILE).write_text("".join(f"{label}\n" for label in recipe.labels), encoding="utf-8")
        return _evidence(staging, card, model_file, parity, golden, key, time.monotonic() - started)


def _check_scores(recipe: Recipe) -> None:
    """Raise :class:`ValidationError` for a score that falls short; one of other weights says nothing about these."""
    scored = scored_sha256(recipe)
    for item in recipe.evaluations:
        if item.value is not None and item.value < item.floor and item.model_sha256 in (None, scored):
            raise ValidationError(f"{recipe.name}: {item.metric} is {item.value}, below the floor of {item.floor:g}")


def _evidence(
    staging: Path, card: ModelCard, model_file: str, parity: ParityResult, golden: int, key: str, seconds: float
) -> Evidence:
    others = sorted(path for path in staging.iterdir() if path.is_file())
    return Evidence(
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(seconds, 2),
        model_file=model_file,
        model_bytes=(staging / model_file).stat().st_size,
        model_sha256=file_sha256(staging / model_file),
        recipe_sha256=recipe_sha256(card.recipe),
        parity_max_abs_error=parity.max_abs_error,
        parity_min_cosine=parity.min_cosine,
        parity_cases=parity.cases,
        golden_passed=golden,
        versions=library_versions(),
        build_key=key,
        files={path.name: file_sha256(path) for path in others},
    )


def _install(staging: Path, card: ModelCard, evidence: Evidence) -> None:
    """Move a finished build into its place. Without ``card.json`` nothing is served, so that goes first and last."""
    card_file = staging / "card.json"
    card_file.write_text(json.dumps(evidence.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    remove_build(card)
    for path in sorted(staging.iterdir()):
        if path != card_file:
            path.replace(card.folder / path.name)
    card_file.replace(card.folder / "card.json")


def remove_build(card: ModelCard) -> None:
    """Delete what a build left beside the recipe, ``card.json`` first; missing files are fine."""
    (card.folder / "card.json").unlink(missing_ok=True)
    for name in ("config.pbtxt", "tokenizer.json", LABELS_FILE):
        (card.folder / name).unlink(missing_ok=True)
    for folder in card.folder.iterdir():
        if folder.is_dir() and folder.name.isdecimal():
            shutil.rmtree(folder)


@contextmanager
def _disk_errors(card: ModelCard) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ZooError(f"{card.name}: no space left on the disk of {card.folder}") from error
        raise ZooError(f"{card.name}: {error.filename or card.folder}: {error.strerror or error}") from error
