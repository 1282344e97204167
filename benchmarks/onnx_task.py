"""A task done the plain way in one process: pre-processing, ONNX Runtime, answer.

It reads the same files of the model repository as Tidegate does. The ceiling and the peers share
it, so that every server in a comparison does the same work. It imports nothing else of this package:
peers run it in environments of their own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import yaml
from PIL import Image
from tokenizers import Tokenizer

Row = npt.NDArray[Any]
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class OnnxTask:
    """One model folder with its tokenizer or its picture settings. ``decode`` and ``encode`` are thread-safe."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        recipe: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        self.task = str(recipe["task"])
        self.max_batch = int(recipe.get("max_batch_size", 32))
        self._settings: dict[str, Any] = recipe["preprocessing"]
        self.text = self._settings["kind"] == "text"
        self._labels = recipe.get("labels") or _labels(folder)
        self._file = folder / str(recipe.get("version", 1)) / "model.onnx"
        if self.text:
            self._tokenizer = Tokenizer.from_file(str(folder / self._settings.get("tokenizer", "tokenizer.json")))
            self._tokenizer.enable_truncation(self._settings.get("max_length", 256))
            self._tokenizer.no_padding()
        self.session = self.new_session(threads)
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name

    def new_session(self, threads: int, *, spinning: bool = False) -> onnxruntime.InferenceSession:
        """A session with ``threads`` threads inside an operator.

        Idle threads sleep unless ``spinning``, as those of Tidegate's backends do: they would take the cores from
        other sessions and from the HTTP server.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        for scope in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{scope}.allow_spinning", str(int(spinning)))
        return onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])

    def decode(self, body: bytes) -> Row:
        """Token ids ``[length]`` of ``{"inputs": text}``, or uint8 ``[height, width, 3]`` of a picture."""
        if self.text:
            return self.decode_text(json.loads(body)["inputs"])
        with Image.open(io.BytesIO(body)) as source:
            return self.decode_picture(source)

    def decode_text(self, value: str) -> Row:
        """Token ids ``[length]``."""
        return np.asarray(self._tokenizer.encode(value).ids, dtype=np.int64)

    def decode_picture(self, source: Image.Image) -> Row:
        """uint8 ``[height, width, 3]`` of a picture that is open, best not decoded yet.

        It is resized and cropped in one step, as the gateway does it: only what the crop shows is computed.
        """
        height, width = self._settings["crop"]
        shorter = self._settings.get("resize_shorter_side")
        if shorter:
            wanted = _resized(source.size, shorter)
            source.draft("RGB", (2 * wanted[0], 2 * wanted[1]))  # JPEG: twice what is needed is enough
        picture = source.convert(self._settings.get("mode", "RGB"))
        box = _crop_box(picture.size, shorter, (width, height)) if shorter else None
        resampling = _RESAMPLING[self._settings.get("interpolation", "bicubic")]
        pixels = np.asarray(picture.resize((width, height), resampling, box=box), dtype=np.uint8)
        return pixels.reshape(height, width, -1)

    def infer(self, rows: Sequence[Row], session: onnxruntime.InferenceSession | None = None) -> list[Row]:
        """One run over all rows, padded to the longest."""
        found = (session or self.session).run([self.output], self.feeds(rows))[0]
        return list(np.asarray(found))

    def feeds(self, rows: Sequence[Row], *, bucketed: bool = False) -> dict[str, Row]:
        """The model's inputs by name, batched; texts are padded to the longest, or to its bucket.

        Buckets are for a server that joins requests of one shape. Who sees the whole batch pads less, and is faster.
        """
        by_role = self._text_feeds(rows, bucketed) if self.text else {"image": np.stack(rows)}
        return {name: by_role[name.split("__")[0]] for name in self.inputs}

    def bucket(self, length: int) -> int:
        """The padded length of a text."""
        buckets: Sequence[int] = self._settings.get("buckets", (16, 24, 32, 48, 64, 96, 128, 192, 256))
        return next((bucket for bucket in buckets if bucket >= length), buckets[-1])

    def encode(self, row: Row) -> Any:
        """The task's answer, ready for JSON, as the Hugging Face dialect has it."""
        if self.task == "feature-extraction":
            return (row / max(1e-12, float(np.linalg.norm(row)))).tolist()
        scores = np.exp(row - row.max())
        scores /= scores.sum()
        best = np.argsort(-scores)[:5]
        labels = [{"label": self._labels[index], "score": float(scores[index])} for index in best]
        return [labels] if self.text else labels

    def _text_feeds(self, rows: Sequence[Row], bucketed: bool) -> dict[str, Row]:
        longest = max(map(len, rows))
        width = self.bucket(longest) if bucketed else longest
        ids = np.full((len(rows), width), self._settings.get("pad_id", 0), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    width, height = size
    return (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)


def _crop_box(size: tuple[int, int], shorter: int, crop: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a picture that the centre crop shows once the picture is resized: left, top, right, bottom."""
    whole = _resized(size, shorter)
    inside = tuple(map(min, crop, whole))
    corner = tuple(round((long - part) / 2) for long, part in zip(whole, inside, strict=True))
    scale = tuple(there / long for there, long in zip(size, whole, strict=True))
    left, top = (offset * factor for offset, factor in zip(corner, scale, strict=True))
    ends = zip(corner, inside, scale, size, strict=True)
    right, bottom = (min(limit, (offset + part) * factor) for offset, part, factor, limit in ends)
    return left, top, right, bottom


def _labels(folder: Path) -> list[str]:
    path = folder / "labels.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
