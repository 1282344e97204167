"""What can go wrong between a recipe and a model that may be served: each message is one line for people."""

from __future__ import annotations


class ZooError(Exception):
    """Root of the tree; the message is what the command prints."""


class SourceError(ZooError):
    """The weights or the checkpoint cannot be had: missing, unreachable, or of a kind that is not loaded."""


class ExportError(ZooError):
    """The source model does not become a file that Triton can run."""


class ValidationError(ZooError):
    """The exported model does not do what the source model does, or misses a golden answer."""


class EvaluationError(ZooError):
    """The data of a task score cannot be read, or the model has none."""
