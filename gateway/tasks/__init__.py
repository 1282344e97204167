"""Tasks: pure pre- and post-processing, one file each. :func:`create_task` is the door."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.catalog import ModelCard
from gateway.errors import NotFound
from gateway.settings import Settings
from gateway.tasks.base import Shared, Task
from gateway.tasks.feature_extraction import FeatureExtraction
from gateway.tasks.image_classification import ImageClassification
from gateway.tasks.question_answering import QuestionAnswering
from gateway.tasks.sentence_similarity import SentenceSimilarity
from gateway.tasks.text_classification import TextClassification
from gateway.tasks.token_classification import TokenClassification
from gateway.tasks.translation import TranslationTask
from gateway.tasks.zero_shot_classification import ZeroShotClassification

TASKS: tuple[type[Task], ...] = (
    ImageClassification,
    TextClassification,
    TokenClassification,
    QuestionAnswering,
    TranslationTask,
    FeatureExtraction,
    SentenceSimilarity,
    ZeroShotClassification,
)
"""Every task; of those that a card can serve its own comes first."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    own: tuple(task.name for task in TASKS if own in task.serves)
    for own in frozenset().union(*(t.serves for t in TASKS))
}


def task_names(card: ModelCard) -> tuple[str, ...]:
    """Tasks that ``card``'s model serves, its own first; empty for a model that is served raw."""
    return _NAMES[card.recipe.task] if card.recipe.task is not None else ()


def create_task(card: ModelCard, name: str, settings: Settings, shared: Shared | None = None) -> Task:
    """The task called ``name`` on ``card``'s model; ``shared`` is what it has in common with others.

    Raises ``NotFound`` if the model does not serve it and ``ValueError`` for a recipe or tokenizer
    that the task cannot work with.
    """
    common = shared or Shared()
    for task in TASKS:
        if task.name == name and card.recipe.task in task.serves:
            return task(card, settings, common)
    raise NotFound(f"the model does not serve the task {name[:64]!r}", param="task")
