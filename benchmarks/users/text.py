"""Users of the text tasks."""

from __future__ import annotations

from benchmarks.users.base import GatewayUser


class SentimentUser(GatewayUser):
    """English reviews."""

    workload = "sentiment"


class TopicsZhUser(GatewayUser):
    """Chinese product reviews."""

    workload = "topics-zh"


class QuestionAnsweringUser(GatewayUser):
    """Questions with contexts of 30 to 200 words."""

    workload = "qa"


class EntitiesUser(GatewayUser):
    """News sentences."""

    workload = "entities"


class TranslateZhEnUser(GatewayUser):
    """Chinese to English."""

    workload = "translate-zh-en"


class TranslateEnFrUser(GatewayUser):
    """English to French."""

    workload = "translate-en-fr"


class EmbeddingsUser(GatewayUser):
    """Texts of mixed lengths, Hugging Face's dialect."""

    workload = "embeddings"


class EmbeddingsInt8User(GatewayUser):
    """The same texts on the quantised model."""

    workload = "embeddings-int8"


class EmbeddingsOpenAIUser(GatewayUser):
    """The same texts in OpenAI's dialect."""

    workload = "embeddings-openai"


class EmbeddingsTeiUser(GatewayUser):
    """The same texts in Text Embeddings Inference's dialect."""

    workload = "embeddings-tei"


class SentenceSimilarityUser(GatewayUser):
    """A sentence and others, Hugging Face's dialect."""

    workload = "sentence-similarity"


class ZeroShotUser(GatewayUser):
    """Texts and labels, Hugging Face's dialect."""

    workload = "zero-shot-classification"


class SimilarityTeiUser(GatewayUser):
    """A sentence and others in Text Embeddings Inference's dialect."""

    workload = "similarity-tei"


class RerankTeiUser(GatewayUser):
    """A query and texts in Text Embeddings Inference's dialect."""

    workload = "rerank-tei"


class PredictTeiUser(GatewayUser):
    """Reviews in Text Embeddings Inference's dialect."""

    workload = "predict-tei"
