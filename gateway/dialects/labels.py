"""The labels of a model's outputs, for Triton's classification extension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gateway.pipeline import Pipeline
from gateway.triton.signature import Signature


class Labels:
    """What ``label_filename`` of ``config.pbtxt`` names, as Triton reads it: a line is a class.

    Without such a file, or where the model repository cannot be read from here, the labels of the recipe.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._read: dict[Path, tuple[int, tuple[str, ...]]] = {}
        """By file: when it was written, and its lines."""

    def of(self, model: str, signature: Signature, output: str) -> Sequence[str]:
        """Labels of the classes of ``output``, by index; empty where there are none."""
        known = signature.outputs.get(output)
        if known is None or not known.label_file:
            return self._pipeline.labels(model)
        folder = self._pipeline.settings.model_repository / model
        path = folder / known.label_file
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                return self._pipeline.labels(model)
            written = path.stat().st_mtime_ns
            if path not in self._read or self._read[path][0] != written:
                self._read[path] = (written, tuple(path.read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError):
            return self._pipeline.labels(model)
        return self._read[path][1]
