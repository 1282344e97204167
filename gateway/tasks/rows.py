"""Rows of token ids and the inference requests they travel in.

Rows are padded to a small set of lengths (buckets), so that rows of different calls can share a
batch, and the rows of one call that share a bucket go in as few requests as the model's batch size
allows. Padding is never billed: units count real tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.catalog import ModelCard, TensorSpec, TextPreprocessing
from gateway.errors import BadUpstream
from gateway.settings import Settings
from gateway.triton.tensors import NUMPY_TYPES, from_numpy, to_numpy
from gateway.types import InferenceRequest, InferenceResult, Units

Array = npt.NDArray[Any]


class Row(NamedTuple):
    """One text, pair or window as the model takes it, special tokens included."""

    ids: Sequence[int]
    type_ids: Sequence[int] | None = None
    """None: all zero."""


@dataclass(slots=True, frozen=True)
class Group:
    """Rows that travel in one request: their positions in the call and their padded length."""

    positions: Sequence[int]
    width: int


def role(name: str) -> str:
    """What a tensor is for: its name without libtorch's trailing ``__<n>``."""
    head, separator, tail = name.rpartition("__")
    return head if separator and tail.isdecimal() else name


def group_rows(lengths: Sequence[int], buckets: Sequence[int], max_batch_size: int) -> list[Group]:
    """Group rows by bucket, each group at most ``max_batch_size`` rows (at least 1).

    A row is padded to the smallest bucket that holds it, or not at all if none does. Without buckets
    all rows are padded to the longest.
    """
    if len(lengths) == 1:
        return [Group((0,), _width(lengths[0], buckets))]
    largest = max(1, max_batch_size)
    by_width: dict[int, list[int]] = {}
    if buckets:
        for position, length in enumerate(lengths):
            by_width.setdefault(_width(length, buckets), []).append(position)
    elif lengths:
        by_width[max(lengths)] = list(range(len(lengths)))
    return [
        Group(positions[start : start + largest], width)
        for width, positions in sorted(by_width.items())
        for start in range(0, len(positions), largest)
    ]


def _width(length: int, buckets: Sequence[int]) -> int:
    index = bisect_left(buckets, length)
    return buckets[index] if index < len(buckets) else length


def pad_rows(sequences: Sequence[Sequence[int]], width: int, pad: int, dtype: np.dtype[Any]) -> Array:
    """``[len(sequences), width]`` of ``dtype``, padded on the right with ``pad``."""
    padded = np.full((len(sequences), width), pad, dtype=dtype)
    if len(sequences) == 1:
        padded[0, : len(sequences[0])] = sequences[0]
        return padded
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    flat = np.fromiter(chain.from_iterable(sequences), dtype=dtype, count=int(lengths.sum()))
    padded[np.arange(width) < lengths[:, None]] = flat
    return padded


class Batch:
    """The rows of one call on their way: their requests, and the way back to their order."""

    def __init__(
        self, groups: list[Group], requests: tuple[InferenceRequest, ...], units: Units, batched: bool
    ) -> None:
        self.requests = requests
        self.units = units
        self._groups = groups
        self._batched = batched

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def fixed(self, results: Sequence[InferenceResult], name: str) -> Array:
        """Output ``name`` of all rows, ``[rows, …]``, for outputs whose shape does not depend on the length."""
        if len(self._groups) == 1:
            return self._read(results[0], name, self._groups[0])
        parts = [self._read(result, name, group) for result, group in zip(results, self._groups, strict=True)]
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise BadUpstream("the model answered rows of different shapes")
        whole = np.empty((self.units.rows, *parts[0].shape[1:]), dtype=parts[0].dtype)
        for part, group in zip(parts, self._groups, strict=True):
            whole[list(group.positions)] = part
        return whole

    def each(self, results: Sequence[InferenceResult], name: str) -> list[Array]:
        """Output ``name`` row by row, in the order of the call; padding still in place."""
        rows: list[Array] = [np.empty(0)] * self.units.rows
        for result, group in zip(results, self._groups, strict=True):
            for position, row in zip(group.positions, self._read(result, name, group), strict=True):
                rows[position] = row
        return rows

    def _read(self, result: InferenceResult, name: str, group: Group) -> Array:
        try:
            array = to_numpy(result.output(name))
        except (KeyError, ValueError) as error:
            raise BadUpstream("the model's answer lacks an output or is damaged") from error
        if not self._batched:
            array = array[None]
        if not array.ndim or array.shape[0] != len(group.positions):
            raise BadUpstream("the model answered another number of rows than it was sent")
        return array


class TextRows:
    """Puts rows into requests for one text model, by the tensors that its recipe lists."""

    def __init__(self, card: ModelCard, preprocessing: TextPreprocessing, settings: Settings) -> None:
        recipe = card.recipe
        self._model = recipe.name
        self._max_batch_size = recipe.max_batch_size
        self._buckets = preprocessing.buckets if settings.length_buckets else ()
        self._pad_id = preprocessing.pad_id
        self._inputs = [
            (spec.name, role(spec.name), NUMPY_TYPES[spec.datatype]) for spec in _text_inputs(card, recipe.inputs)
        ]
        self.outputs = {role(spec.name): spec.name for spec in recipe.outputs}
        """Output names by role."""

    def output(self, *roles: str) -> str:
        """Name of the first of ``roles`` that the model has. Raises ``ValueError`` if it has none."""
        for candidate in roles:
            if candidate in self.outputs:
                return self.outputs[candidate]
        raise ValueError(f"model {self._model}: no output named {' or '.join(roles)}")

    def batch(self, rows: Sequence[Row], outputs: tuple[str, ...] = ()) -> Batch:
        """Requests for ``rows``; ``outputs`` narrows what the model answers (empty: everything)."""
        lengths = [len(row.ids) for row in rows]
        groups = group_rows(lengths, self._buckets, self._max_batch_size)
        requests = tuple(
            self._request([rows[position] for position in group.positions], group.width, outputs) for group in groups
        )
        return Batch(groups, requests, Units(tokens=sum(lengths), rows=len(rows)), self._max_batch_size > 0)

    def _request(self, rows: Sequence[Row], width: int, outputs: tuple[str, ...]) -> InferenceRequest:
        tensors = []
        for name, kind, dtype in self._inputs:
            if kind == "input_ids":
                array = pad_rows([row.ids for row in rows], width, self._pad_id, dtype)
            elif kind == "attention_mask":
                lengths = np.array([[len(row.ids)] for row in rows])
                array = (np.arange(width) < lengths).astype(dtype)
            else:
                array = pad_rows([row.type_ids or () for row in rows], width, 0, dtype)
            tensors.append(from_numpy(name, array if self._max_batch_size > 0 else array[0]))
        return InferenceRequest(self._model, tuple(tensors), outputs=outputs)


def _text_inputs(card: ModelCard, specs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """The inputs that a text fills. Raises ``ValueError`` for a recipe that wants another one."""
    for spec in specs:
        if role(spec.name) in {"input_ids", "attention_mask", "token_type_ids"}:
            yield spec
        elif not spec.optional:
            raise ValueError(f"model {card.name}: nothing to put into its input {spec.name}")
