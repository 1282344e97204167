"""One answer of several servers to a question that each of them answers for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb

_READY = "READY"


def merge_index(replies: Sequence[Any]) -> Any:
    """Every model of any server (``RepositoryIndexResponse``); ready where one server has it ready."""
    found: dict[tuple[str, str], Any] = {}
    for reply in replies:
        for entry in reply.models:
            known = found.get((entry.name, entry.version))
            if known is None or (known.state != _READY and entry.state == _READY):
                found[entry.name, entry.version] = entry
    return pb.RepositoryIndexResponse(models=found.values())


def merge_statistics(replies: Sequence[Any]) -> Any:
    """Sums over all servers (``ModelStatisticsResponse``), and the latest of their last inferences."""
    found: dict[tuple[str, str], Any] = {}
    for reply in replies:
        for entry in reply.model_stats:
            known = found.get((entry.name, entry.version))
            if known is None:
                found[entry.name, entry.version] = entry
            else:
                _add_model(known, entry)
    return pb.ModelStatisticsResponse(model_stats=found.values())


MERGE: dict[str, Callable[[Sequence[Any]], Any]] = {
    "RepositoryIndex": merge_index,
    "ModelStatistics": merge_statistics,
}
"""By the method that was asked."""


def _add_model(total: Any, more: Any) -> None:
    last = max(total.last_inference, more.last_inference)
    batches = {batch.batch_size: batch for batch in total.batch_stats}
    for batch in more.batch_stats:
        known = batches.get(batch.batch_size)
        if known is None:
            total.batch_stats.append(batch)
        else:
            _add(known, batch, but=("batch_size",))
    for name, responses in more.response_stats.items():
        _add(total.response_stats[name], responses)
    total.memory_usage.extend(more.memory_usage)  # of each server its own
    _add(total, more, but=("batch_stats", "response_stats", "memory_usage"))
    total.last_inference = last


def _add(total: Any, more: Any, but: tuple[str, ...] = ()) -> None:
    """Add the numbers in ``more`` to those in ``total``, in members that are messages too."""
    for field, value in more.ListFields():
        if field.name in but or isinstance(value, str):
            continue
        if field.message_type is not None:
            _add(getattr(total, field.name), value)
        else:
            setattr(total, field.name, getattr(total, field.name) + value)
