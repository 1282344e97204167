"""Writing model.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.catalog import Catalog, Evaluation, ModelCard, Recipe
from zoo.recipes import write_evaluations, write_recipe

CARDS = list(Catalog.load(Path(__file__).parents[2] / "model_repository"))
SCORE = Evaluation(
    metric="accuracy", value=0.9125, floor=0.9, dataset="a: b", split="last 20 %", samples=800, date="2026-01-02"
)


def load(path: Path) -> Recipe:
    return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def lines_outside(text: str) -> list[str]:
    """Top-level lines: none of them belongs to the scores."""
    return [line for line in text.splitlines() if not line.startswith(("evaluations", "- ", "  "))]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_recipe_survives_being_written(card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    write_recipe(path, card.recipe)
    assert load(path) == card.recipe
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.yaml"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_scores_replace_their_block_and_nothing_else(card: ModelCard, tmp_path: Path) -> None:
    before = (card.folder / "model.yaml").read_text(encoding="utf-8")
    path = tmp_path / "model.yaml"
    path.write_text(before, encoding="utf-8")
    write_evaluations(path, [SCORE])
    after = path.read_text(encoding="utf-8")
    assert load(path) == card.recipe.model_copy(update={"evaluations": (SCORE,)})
    assert lines_outside(after) == lines_outside(before)


def test_comments_and_order_stay(tmp_path: Path, make_recipe) -> None:
    path = tmp_path / "model.yaml"
    write_recipe(path, make_recipe(evaluations=[{"metric": "m", "floor": 1, "dataset": "d", "split": "s"}]))
    text = path.read_text().replace("evaluations:", "# why\nevaluations:") + "# the end\n"
    path.write_text(text)
    write_evaluations(path, [SCORE])
    lines = path.read_text().splitlines()
    assert lines[lines.index("evaluations:") - 1] == "# why"
    assert lines[-1] == "# the end"
    write_evaluations(path, [SCORE])
    assert path.read_text().splitlines() == lines


def test_a_broken_recipe_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ValueError, match="title"):
        write_evaluations(path, [SCORE])
    assert path.read_text() == "name: x\n"
