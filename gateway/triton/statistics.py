"""What Triton counts of a model since it was loaded (``ModelStatistics`` of its statistics extension)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class ModelStatistics:
    """Totals of one version of one model on one server; they fall back to 0 when it is loaded again."""

    server: str
    model: str
    version: str
    inference_count: int
    """Rows inferred: a request with a batch of 4 counts 4. Answers from the cache are not in it."""
    execution_count: int
    """Runs of the model; ``inference_count / execution_count`` is the mean batch size."""
    cache_hit_count: int
    queue_ns: int
    """Summed over requests."""
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    """Summed over executions: a batch counts once, however many requests are in it."""

    @property
    def compute_ns(self) -> int:
        """Input, inference and output together."""
        return self.compute_input_ns + self.compute_infer_ns + self.compute_output_ns
