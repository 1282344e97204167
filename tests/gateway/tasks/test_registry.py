"""When tasks are made: at the start, or when they are first asked for."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from gateway.catalog import Catalog, ModelCard, file_sha256
from gateway.errors import NotFound, Unavailable
from gateway.settings import Settings
from gateway.tasks.base import Task
from gateway.tasks.registry import Tasks
from tests.gateway.tasks.models import Runner


@pytest.fixture
def card(runner: Runner, tmp_path: Path) -> ModelCard:
    """A text model whose build wrote down what its tokenizer is."""
    original = runner.catalog.get("sentiment")
    assert original is not None
    shutil.copytree(original.folder, tmp_path / "sentiment")
    (found,) = Catalog.load(tmp_path)
    assert found.evidence is not None
    files = {"tokenizer.json": file_sha256(found.folder / "tokenizer.json")}
    return ModelCard(found.folder, found.recipe, found.evidence.model_copy(update={"files": files}))


async def test_a_validated_tokenizer_is_read_when_it_is_needed_and_once(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks(Settings())
    tasks.prepare([card])
    tokenizer = card.folder / "tokenizer.json"
    away = tokenizer.with_suffix(".away")
    tokenizer.rename(away)
    with pytest.raises(Unavailable, match="files") as caught:  # it is read now, and was not at the start
        await tasks.get(card, "text-classification")
    assert str(card.folder) not in caught.value.message
    away.rename(tokenizer)
    made: list[Task] = list(await asyncio.gather(*(tasks.get(card, "text-classification") for _ in range(20))))
    assert all(task is made[0] for task in made)
    assert await tasks.get(card, "text-classification") is made[0]
    with pytest.raises(NotFound):
        await tasks.get(card, "translation")


async def test_any_other_is_read_at_the_start(card: ModelCard) -> None:
    assert card.evidence is not None
    unknown = ModelCard(card.folder, card.recipe, card.evidence.model_copy(update={"files": {}}))
    tasks = Tasks(Settings())
    tasks.prepare([unknown])
    (card.folder / "tokenizer.json").unlink()
    assert (await tasks.get(unknown, "text-classification")).name == "text-classification"


@pytest.mark.parametrize("content", [None, "not a tokenizer"])
def test_one_that_cannot_be_used_ends_the_start(card: ModelCard, content: str | None) -> None:
    tokenizer = card.folder / "tokenizer.json"
    tokenizer.unlink()
    if content is not None:
        tokenizer.write_text(content)
    with pytest.raises(ValueError, match="tokenizer"):
        Tasks(Settings()).prepare([card])
