"""Workloads by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.workloads.base import Payload, Workload, WrongAnswer
from benchmarks.workloads.images import Digits, ImageNet, ImageNetTorchScript
from benchmarks.workloads.tensors import EmbeddingsTensors, Identity, RawModel
from benchmarks.workloads.text import (
    Embeddings,
    EmbeddingsInt8,
    EmbeddingsOpenAI,
    EmbeddingsTei,
    Entities,
    PredictTei,
    QuestionAnswering,
    RerankTei,
    SentenceSimilarity,
    Sentiment,
    SimilarityTei,
    TopicsZh,
    TranslateEnFr,
    TranslateZhEn,
    ZeroShot,
)

WORKLOADS: Mapping[str, Callable[[int], Workload]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Identity, Digits, TopicsZh, TranslateZhEn, TranslateEnFr, QuestionAnswering, Sentiment, Entities,
            Embeddings, EmbeddingsInt8, EmbeddingsOpenAI, EmbeddingsTei, EmbeddingsTensors, SentenceSimilarity,
            ZeroShot, SimilarityTei, RerankTei, PredictTei, ImageNet, ImageNetTorchScript,
        )
    }
)  # fmt: skip

__all__ = ["WORKLOADS", "Payload", "RawModel", "Workload", "WrongAnswer"]
