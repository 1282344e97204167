"""The tasks of all models, each made once: when it is first asked for, or at the start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from gateway.catalog import ModelCard
from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.tasks import create_task, task_names
from gateway.tasks.base import Shared, Task
from gateway.tasks.text import has_validated_tokenizer

log = structlog.get_logger(__name__)


class Tasks:
    """Tasks by model and name; they share their tokenizers, and the memory for pictures."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[tuple[str, str], Task] = {}
        self._shared = Shared()
        self._making = asyncio.Lock()

    def prepare(self, cards: Iterable[ModelCard]) -> None:
        """Make the tasks of every built model, but for those whose tokenizer is the one that its build validated.

        These are made when they are first asked for, which takes a moment; all tokenizers together would be a
        tenth of an idle gateway's memory. Raises ``ValueError`` for a recipe or a tokenizer that cannot be used.
        """
        for card in cards:
            if card.built and not has_validated_tokenizer(card):
                for name in task_names(card):
                    self._make(card, name)

    async def get(self, card: ModelCard, name: str) -> Task:
        """The task called ``name`` on ``card``'s model. Raises ``NotFound``, and ``Unavailable`` where it is made now
        and its files have been changed into something that cannot be used.
        """
        task = self._made.get((card.name, name))
        if task is not None:
            return task
        if name not in task_names(card):
            return self._make(card, name)  # raises
        async with self._making:  # once, however many ask; in a thread, since others have something else to do
            if (card.name, name) in self._made:
                return self._made[card.name, name]
            try:
                return await asyncio.to_thread(self._make, card, name)
            except (OSError, ValueError) as error:
                log.error("model.unusable", model=card.name, reason=str(error))
                raise Unavailable("the model's files cannot be used", retry_after_s=30.0) from error

    def _make(self, card: ModelCard, name: str) -> Task:
        task = self._made[card.name, name] = create_task(card, name, self._settings, self._shared)
        return task
