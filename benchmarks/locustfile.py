"""Locust: every task with real inputs through the gateway.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8080            (web page on :8089)
    locust -f benchmarks/locustfile.py,benchmarks/shapes/steps.py --headless …

The key comes from ``--tidegate-key`` or ``TIDEGATE_KEY``. Users of the models that the gateway has ready
are started, in equal parts; name classes (``SentimentUser ImageNetUser``) or give ``--tidegate-models``
to narrow them. Latency goes into HdrHistograms (``--hdr-out DIR`` writes them).
"""

from __future__ import annotations

import sys
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:  # Locust adds this folder, not the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import locust.stats
from locust import events

from benchmarks.users import session
from benchmarks.users.images import DigitsUser, ImageNetTorchScriptUser, ImageNetUser
from benchmarks.users.tensors import EmbeddingsTensorsUser, IdentityUser
from benchmarks.users.text import (
    EmbeddingsInt8User,
    EmbeddingsOpenAIUser,
    EmbeddingsTeiUser,
    EmbeddingsUser,
    EntitiesUser,
    QuestionAnsweringUser,
    SentimentUser,
    TopicsZhUser,
    TranslateEnFrUser,
    TranslateZhEnUser,
)

__all__ = [
    "DigitsUser", "EmbeddingsInt8User", "EmbeddingsOpenAIUser", "EmbeddingsTeiUser", "EmbeddingsTensorsUser",
    "EmbeddingsUser", "EntitiesUser", "IdentityUser", "ImageNetTorchScriptUser", "ImageNetUser",
    "QuestionAnsweringUser", "SentimentUser", "TopicsZhUser", "TranslateEnFrUser", "TranslateZhEnUser",
]  # fmt: skip

locust.stats.bucket_response_time = session.three_digits  # type: ignore[assignment]
session.install(events)
