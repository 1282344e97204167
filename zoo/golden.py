"""The golden set: inputs of our own and the answers that every build must give, through the gateway's task code.

What ``expect`` may say, by task: ``{label: …}`` (one name or several that are all right; with ``score`` the least
it must have) for classification; ``{answer: …}`` for question answering; ``{contains: […]}`` or ``{text: …}`` for
translation; ``{entities: [[word, type], …]}``; ``{cosines: […]}`` within ``tolerance`` for sentence similarity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.catalog import Golden, ModelCard
from gateway.errors import GatewayError
from gateway.tasks.answers import Answers, Entities, Labels, Similarities, Translations
from zoo.errors import ValidationError
from zoo.pictures import load_picture
from zoo.runtime import TaskRunner


def check_golden(card: ModelCard, tasks: TaskRunner) -> int:
    """How many golden inputs were answered as expected: all of them.

    Raises :class:`ValidationError` naming the first that was not.
    """
    for number, golden in enumerate(card.recipe.golden, start=1):
        where = f"{card.name}: golden input {number}"
        task = golden.task or card.recipe.task
        if task is None:
            raise ValidationError(f"{where}: the model has no task to call")
        try:
            answer = tasks.call(task, _with_pictures(golden.inputs), golden.options)
        except (GatewayError, ValueError) as error:
            raise ValidationError(f"{where}: {error}") from error
        complaint = compare(golden, answer)
        if complaint:
            raise ValidationError(f"{where}: {complaint}")
    return len(card.recipe.golden)


def compare(golden: Golden, answer: Any) -> str | None:
    """What is wrong with ``answer``, or None."""
    kind = next((kind for kind in _COMPARISONS if isinstance(answer, kind)), None)
    if kind is None:
        return f"no way to compare a {type(answer).__name__}"
    if not isinstance(golden.expect, dict):
        return "expect must be a mapping"
    return _COMPARISONS[kind](golden, answer)


def _labels(golden: Golden, answer: Labels) -> str | None:
    best = answer.items[0][0]
    wanted = golden.expect["label"]
    if best.label not in (wanted if isinstance(wanted, list) else [wanted]):
        return f"expected {wanted!r}, got {best.label!r} ({best.score:.3f})"
    least = golden.expect.get("score", 0.0)
    return None if best.score >= least else f"expected {wanted!r} with at least {least}, got {best.score:.3f}"


def _answer(golden: Golden, answer: Answers) -> str | None:
    best = answer.items[0][0].answer
    wanted = golden.expect["answer"]
    return None if best in (wanted if isinstance(wanted, list) else [wanted]) else f"expected {wanted!r}, got {best!r}"


def _translation(golden: Golden, answer: Translations) -> str | None:
    text = answer.items[0].text
    if "text" in golden.expect:
        wanted = golden.expect["text"]
        return None if text == wanted else f"expected {wanted!r}, got {text!r}"
    missing = [part for part in golden.expect["contains"] if part.lower() not in text.lower()]
    return f"expected {', '.join(map(repr, missing))} in {text!r}" if missing else None


def _entities(golden: Golden, answer: Entities) -> str | None:
    found = [[entity.word, entity.entity_group or entity.entity] for entity in answer.items[0]]
    wanted = golden.expect["entities"]
    return None if found == wanted else f"expected {wanted}, got {found}"


def _similarities(golden: Golden, answer: Similarities) -> str | None:
    wanted = golden.expect["cosines"]
    tolerance = golden.tolerance if golden.tolerance is not None else 1e-3
    right = len(wanted) == len(answer.scores) and all(
        abs(cosine - score) <= tolerance for cosine, score in zip(wanted, answer.scores, strict=True)
    )
    return (
        None if right else f"expected {wanted} within {tolerance}, got {[round(score, 4) for score in answer.scores]}"
    )


_COMPARISONS: dict[type, Callable[[Golden, Any], str | None]] = {
    Labels: _labels,
    Answers: _answer,
    Translations: _translation,
    Entities: _entities,
    Similarities: _similarities,
}


def _with_pictures(inputs: Any) -> Any:
    """``picture:<name>`` and ``digit:<n>`` as the image they stand for."""
    if isinstance(inputs, str) and inputs.startswith(("picture:", "digit:")):
        return load_picture(inputs)
    return inputs
