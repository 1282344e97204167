"""Writes ``model.yaml``: whole, for a model that is added; one block of it, for scores that were measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from gateway.catalog import Evaluation, Recipe

FIELDS = (
    "name", "version", "task", "title", "description", "architecture", "source", "format", "quantisation", "inputs",
    "outputs", "labels", "score_function", "languages", "preprocessing", "max_batch_size", "batching", "instances",
    "parameters", "response_cache", "licence", "notes", "parity", "evaluations", "golden",
)  # fmt: skip
"""Order of a recipe's fields in the file."""


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write ``recipe`` to ``path``, without the fields that are at their defaults."""
    fields = recipe.model_dump(mode="json", exclude_defaults=True)
    if recipe.preprocessing is not None:  # what tells one kind from the other is its default, too
        fields["preprocessing"] = {"kind": recipe.preprocessing.kind, **fields["preprocessing"]}
    ordered = sorted(fields, key=lambda name: FIELDS.index(name) if name in FIELDS else len(FIELDS))
    _replace(path, _dump({name: fields[name] for name in ordered}))


def write_evaluations(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Replace the ``evaluations`` of a recipe file; the rest of it stays as it is, comments included."""
    values = [item.model_dump(mode="json", exclude_none=True) for item in evaluations]
    block = _dump({"evaluations": values}, flow=False)
    text = path.read_text(encoding="utf-8")
    found = re.search(r"^evaluations:.*\n(?:(?:[ \-].*)?\n)*", text, flags=re.MULTILINE)
    start, end = found.span() if found else (len(text), len(text))
    text = text[:start] + block + text[end:]
    Recipe.model_validate(yaml.safe_load(text))
    _replace(path, text)


def _dump(value: Any, *, flow: bool | None = None) -> str:
    """YAML; ``flow`` None puts lists and mappings without further nesting on one line."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=116, default_flow_style=flow)


def _replace(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
