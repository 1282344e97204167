"""Users of raw tensors."""

from __future__ import annotations

from benchmarks.users.base import GatewayUser, GrpcUser


class IdentityUser(GatewayUser):
    """Open Inference Protocol over HTTP with binary tensors."""

    workload = "identity"


class EmbeddingsTensorsUser(GatewayUser):
    """Token ids in, vectors out."""

    workload = "embeddings-tensors"


class IdentityGrpcUser(GrpcUser):
    """The same floats over gRPC."""

    workload = "identity"


class EmbeddingsTensorsGrpcUser(GrpcUser):
    """The same token ids over gRPC."""

    workload = "embeddings-tensors"
