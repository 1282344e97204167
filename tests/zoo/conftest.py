"""Fixtures of the zoo's tests: recipes and repositories in temporary folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.catalog import ModelCard, Recipe, read_card
from gateway.settings import Settings

IDENTITY: dict[str, Any] = {
    "name": "identity",
    "title": "Identity",
    "description": "what comes in goes out",
    "architecture": "none",
    "source": {"kind": "builtin", "name": "identity"},
    "format": "torchscript",  # the quicker of the two to export
    "inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [64]}],
    "outputs": [{"name": "OUTPUT__0", "datatype": "FP32", "shape": [64]}],
    "max_batch_size": 8,
    "licence": "Apache-2.0",
    "parity": {"atol": 0.0, "batch_sizes": [1, 2]},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    folder = tmp_path / "model_repository"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(repository: Path, tmp_path: Path) -> Settings:
    """Settings with that repository."""
    return Settings(model_repository=repository, data_dir=tmp_path / "data")


@pytest.fixture
def make_card(repository: Path) -> Callable[..., ModelCard]:
    """Write a recipe (identity with the fields given) into the repository and read it back."""

    def make(**fields: Any) -> ModelCard:
        recipe = {**IDENTITY, **fields}
        folder = repository / recipe["name"]
        folder.mkdir(exist_ok=True)
        (folder / "model.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        return read_card(folder)

    return make


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A recipe (identity with the fields given) that lies nowhere."""
    return lambda **fields: Recipe.model_validate({**IDENTITY, **fields})
