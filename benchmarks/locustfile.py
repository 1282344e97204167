"""Locust: every task with real inputs through the gateway.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8080            (web page on :8089)
    locust -f benchmarks/locustfile.py,benchmarks/shapes/steps.py --headless …

The key comes from ``--tidegate-key`` or ``TIDEGATE_KEY``. Users of the models that the gateway has ready
are started, in equal parts; name classes (``SentimentUser ImageNetUser``) or give ``--tidegate-models``
to narrow them. Users of gRPC need ``--tidegate-grpc HOST:PORT``. Latency goes into HdrHistograms
(``--hdr-out DIR`` writes them).
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
from benchmarks.users.tally import three_digits
from benchmarks.users.tensors import (
    EmbeddingsTensorsGrpcUser,
    EmbeddingsTensorsUser,
    IdentityGrpcUser,
    IdentityUser,
)
from benchmarks.users.text import (
    EmbeddingsInt8User,
    EmbeddingsOpenAIUser,
    EmbeddingsTeiUser,
    EmbeddingsUser,
    EntitiesUser,
    PredictTeiUser,
    QuestionAnsweringUser,
    RerankTeiUser,
    SentenceSimilarityUser,
    SentimentUser,
    SimilarityTeiUser,
    TopicsZhUser,
    TranslateEnFrUser,
    TranslateZhEnUser,
    ZeroShotUser,
)

__all__ = [
    "DigitsUser", "EmbeddingsInt8User", "EmbeddingsOpenAIUser", "EmbeddingsTeiUser", "EmbeddingsTensorsGrpcUser",
    "EmbeddingsTensorsUser", "EmbeddingsUser", "EntitiesUser", "IdentityGrpcUser", "IdentityUser",
    "ImageNetTorchScriptUser", "ImageNetUser", "PredictTeiUser", "QuestionAnsweringUser", "RerankTeiUser",
    "SentenceSimilarityUser", "SentimentUser", "SimilarityTeiUser", "TopicsZhUser", "TranslateEnFrUser",
    "TranslateZhEnUser", "ZeroShotUser",
]  # fmt: skip

locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]
session.install(events)
