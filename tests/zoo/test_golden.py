"""Comparing golden answers."""

from __future__ import annotations

import pytest

from gateway.catalog import Golden
from gateway.tasks.answers import (
    Answers,
    Entities,
    Entity,
    Label,
    Labels,
    Similarities,
    Span,
    Translation,
    Translations,
)
from zoo.golden import compare

LABELS = Labels([[Label("cat", 0.7), Label("dog", 0.3)]], single=True)
ANSWER = Answers([[Span("the stove", 0.9, 3, 12)]], single=True, top_k=1)
TEXT = Translations([Translation("The cat sleeps.", -0.1)], single=True)
ENTITIES = Entities([[Entity(entity_group="PER", score=0.9, word="Ada", start=0, end=3)]], single=True)
COSINES = Similarities([0.5, -0.25])


@pytest.mark.parametrize(
    ("answer", "expect", "tolerance"),
    [
        (LABELS, {"label": "cat"}, None),
        (LABELS, {"label": ["tiger", "cat"], "score": 0.6}, None),
        (ANSWER, {"answer": "the stove"}, None),
        (ANSWER, {"answer": ["stove", "the stove"]}, None),
        (TEXT, {"text": "The cat sleeps."}, None),
        (TEXT, {"contains": ["cat", "SLEEP"]}, None),
        (ENTITIES, {"entities": [["Ada", "PER"]]}, None),
        (COSINES, {"cosines": [0.5, -0.25]}, None),
        (COSINES, {"cosines": [0.51, -0.26]}, 0.02),
    ],
)
def test_right_answers_pass(answer, expect, tolerance) -> None:
    assert compare(Golden(inputs="", expect=expect, tolerance=tolerance), answer) is None


@pytest.mark.parametrize(
    ("answer", "expect", "complaint"),
    [
        (LABELS, {"label": "dog"}, "expected 'dog', got 'cat' (0.700)"),
        (LABELS, {"label": "cat", "score": 0.8}, "at least 0.8, got 0.700"),
        (ANSWER, {"answer": "stove"}, "expected 'stove', got 'the stove'"),
        (TEXT, {"text": "The dog sleeps."}, "got 'The cat sleeps.'"),
        (TEXT, {"contains": ["cat", "dog"]}, "expected 'dog' in 'The cat sleeps.'"),
        (ENTITIES, {"entities": [["Ada", "LOC"]]}, "got [['Ada', 'PER']]"),
        (COSINES, {"cosines": [0.5]}, "got [0.5, -0.25]"),
        (COSINES, {"cosines": [0.5, -0.2]}, "within 0.001"),
        (COSINES, "near", "expect must be a mapping"),
        ("text", {"text": "text"}, "no way to compare"),
    ],
)
def test_wrong_answers_are_named(answer, expect, complaint: str) -> None:
    assert complaint in (compare(Golden(inputs="", expect=expect), answer) or "")
