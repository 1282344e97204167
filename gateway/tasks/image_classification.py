"""Image classification: a photograph's classes, a handwritten digit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from PIL.Image import Image

from gateway.catalog import ImagePreprocessing, ModelCard
from gateway.errors import BadUpstream, TooLarge
from gateway.settings import Settings
from gateway.tasks import scores
from gateway.tasks.answers import Labels
from gateway.tasks.base import Shared, Task
from gateway.tasks.image import Pixels, decoding_bytes, model_pixels, open_picture, picture_bytes
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.rows import Batch, Group, role
from gateway.tasks.scores import ScoreFunction
from gateway.triton.tensors import NUMPY_TYPES, from_numpy
from gateway.types import InferenceRequest, InferenceResult, Plan, Units


class ImageClassificationOptions(Options, frozen=True):
    """``top_k``: how many classes."""

    top_k: Annotated[int, msgspec.Meta(ge=1)] = 5
    function_to_apply: ScoreFunction | None = None


class ImageClassification(Task):
    """Takes a picture (bytes, base64 or a ``data:`` URL) or a list of them; answers :class:`Labels`.

    Billed pixels are those of the picture that was sent, width times height.
    """

    name: ClassVar[str] = "image-classification"
    serves: ClassVar[frozenset[str]] = frozenset({"image-classification"})
    threaded: ClassVar[bool] = True

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        preprocessing = card.recipe.preprocessing
        if not isinstance(preprocessing, ImagePreprocessing) or len(card.recipe.inputs) != 1:
            raise ValueError(f"model {card.name}: its recipe must have image preprocessing and one input")
        self._preprocessing = preprocessing
        self._input = card.recipe.inputs[0]
        outputs = {role(spec.name): spec.name for spec in card.recipe.outputs}
        if "logits" not in outputs:
            raise ValueError(f"model {card.name}: no output named logits")
        self._logits = outputs["logits"]

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a picture. Every header is read before the first picture is decoded."""
        chosen = parse_options(ImageClassificationOptions, options)
        items, single = as_list(inputs, self.settings.max_batch_items)
        pictures = self._open(items)
        sent = sum(picture.width * picture.height for picture in pictures)
        batch = self._batch(self._decode(pictures), sent)

        def finish(results: Sequence[InferenceResult]) -> Labels:
            logits = batch.fixed(results, self._logits)
            if logits.ndim != 2:
                raise BadUpstream("the model did not answer one score a class")
            classes = logits.shape[1]
            function = chosen.function_to_apply or scores.default_function(self.card.recipe.score_function, classes)
            names = scores.class_names(self.card.recipe.labels, classes)
            return Labels(scores.best_labels(scores.apply(function, logits), names, chosen.top_k), single)

        return Plan(batch.requests, batch.units, finish)

    def _open(self, items: list[Any]) -> list[Image]:
        pictures: list[Image] = []
        sent = 0
        for item in items:
            picture = open_picture(picture_bytes(item), self.settings.max_image_pixels)
            sent += picture.width * picture.height
            if sent > self.settings.max_call_pixels:
                most = self.settings.max_call_pixels
                raise TooLarge(f"the pictures have more than the {most} pixels taken in one call", param="inputs")
            pictures.append(picture)
        return pictures

    def _decode(self, pictures: list[Image]) -> list[Pixels]:
        """What the model takes of each, in their order. Takes them out of the list: nothing else of one is kept
        while the next is decoded, and a decoder may keep more than the picture.
        """
        decoded = []
        pictures.reverse()
        while pictures:
            with self.shared.pictures.hold(decoding_bytes(pictures[-1], self._preprocessing)):
                decoded.append(model_pixels(pictures.pop(), self._preprocessing))
        return decoded

    def _batch(self, pixels: list[Pixels], sent: int) -> Batch:
        largest = self.card.recipe.max_batch_size
        dtype = NUMPY_TYPES[self._input.datatype]
        groups = [
            Group(range(start, min(start + max(1, largest), len(pixels))), 0)
            for start in range(0, len(pixels), max(1, largest))
        ]
        requests = []
        for group in groups:
            stacked = np.stack([pixels[position] for position in group.positions]).astype(dtype, copy=False)
            tensor = from_numpy(self._input.name, stacked if largest > 0 else stacked[0])
            requests.append(InferenceRequest(self.card.name, (tensor,)))
        return Batch(groups, tuple(requests), Units(pixels=sent, rows=len(pixels)), largest > 0)
