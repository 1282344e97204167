"""Numeric parity: the exported file against the source model, over several batch sizes and lengths."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer
from torch import nn

from gateway.catalog import Parity, Recipe, TensorSpec, TextPreprocessing
from gateway.tasks.rows import role
from gateway.triton.tensors import NUMPY_TYPES
from zoo.errors import ValidationError
from zoo.export import first_line
from zoo.runtime import Array, Arrays, ModuleRunner, Runner


@dataclass(frozen=True)
class ParityResult:
    """The worst of all output elements and vectors, and how many batches were compared."""

    max_abs_error: float = 0.0
    min_cosine: float = 1.0
    cases: int = 0

    def worse(self, error: float, cosine: float) -> ParityResult:
        """With one more output taken in."""
        return replace(self, max_abs_error=max(self.max_abs_error, error), min_cosine=min(self.min_cosine, cosine))


def check_parity(module: nn.Module, runner: Runner, recipe: Recipe, tokenizer: Tokenizer | None = None) -> ParityResult:
    """Compare ``runner`` with ``module`` on batches as the recipe's ``parity`` asks.

    Integer outputs must be equal. Raises :class:`ValidationError` for an output that is missing, of another
    shape or dtype, not finite, or further off than the recipe allows.
    """
    result = ParityResult()
    source = ModuleRunner(module, recipe)
    for rows, length in _cases(recipe):
        inputs = sample_inputs(recipe, rows, length, tokenizer)
        where = f"{recipe.name}: batch {rows}" + (f", length {length}" if length else "")
        expected = source.run(inputs)
        try:
            found = runner.run(inputs)
        except Exception as error:
            raise ValidationError(f"{where}: the exported model fails: {first_line(error)}") from error
        for spec in recipe.outputs:
            values = _check_form(expected[spec.name], found.get(spec.name), spec, where)
            result = result.worse(*_difference(_real(expected[spec.name], inputs), _real(values, inputs)))
        result = replace(result, cases=result.cases + 1)
        _check(result, recipe.parity, where)
    return result


def _check(result: ParityResult, allowed: Parity, where: str) -> None:
    if allowed.cosine is None and result.max_abs_error > allowed.atol:
        raise ValidationError(
            f"{where}: the exported model is off by {result.max_abs_error:.3g}, more than the {allowed.atol:g} allowed"
        )
    if allowed.cosine is not None and result.min_cosine < allowed.cosine:
        raise ValidationError(
            f"{where}: an output vector has cosine {result.min_cosine:.4f} with the source's, "
            f"less than the {allowed.cosine:g} allowed"
        )


def sample_inputs(recipe: Recipe, rows: int, length: int, tokenizer: Tokenizer | None = None) -> Arrays:
    """A batch by the roles of the recipe's inputs, the same on every machine.

    Of texts every second row is shorter than the batch and padded, so that the mask is tested.
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{recipe.name} {rows} {length}".encode())))
    mask = np.zeros((rows, length), dtype=np.int64)
    for row in range(rows):
        mask[row, : length if row % 2 == 0 else max(1, length // 2 - row // 2)] = 1
    pad_id = recipe.preprocessing.pad_id if isinstance(recipe.preprocessing, TextPreprocessing) else 0
    arrays: Arrays = {}
    for spec in recipe.inputs:
        shape = (*((rows,) if recipe.max_batch_size else ()), *(length if size == -1 else size for size in spec.shape))
        dtype = NUMPY_TYPES[spec.datatype]
        kind = role(spec.name)
        if kind == "input_ids":
            array: Array = np.where(mask == 1, _token_ids(recipe, tokenizer, shape, generator), pad_id)
        elif kind == "attention_mask":
            array = mask
        elif kind == "token_type_ids":
            array = np.cumsum(mask, axis=1) > mask.sum(axis=1, keepdims=True) // 2
            array = array & (mask == 1)
        elif dtype == np.uint8:
            array = generator.integers(0, 256, size=shape)
        else:
            array = generator.normal(size=shape)
        arrays[spec.name] = np.ascontiguousarray(array.astype(dtype))
    return arrays


def _token_ids(
    recipe: Recipe, tokenizer: Tokenizer | None, shape: tuple[int, ...], generator: np.random.Generator
) -> Array:
    """Ids of the whole vocabulary at random, or stretches of the recipe's text."""
    if tokenizer is None:
        raise ValidationError(f"{recipe.name}: it takes input_ids but has no tokenizer")
    if recipe.parity.text is None:
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        drawn: Array = generator.integers(0, size, size=shape)
        return drawn
    ids = np.array(tokenizer.encode(recipe.parity.text, add_special_tokens=False).ids)
    starts = generator.integers(0, len(ids), size=(shape[0], 1))
    stretches: Array = ids[(starts + np.arange(shape[1])) % len(ids)]
    return stretches


def _cases(recipe: Recipe) -> Iterator[tuple[int, int]]:
    sizes = [size for size in recipe.parity.batch_sizes if size <= recipe.max_batch_size] or [1]
    is_text = isinstance(recipe.preprocessing, TextPreprocessing)
    return itertools.product(sizes, recipe.parity.lengths if is_text else (0,))


def _check_form(expected: Array, found: Array | None, spec: TensorSpec, where: str) -> Array:
    """``found`` if dtype and shape are those of the source and of the recipe."""
    if found is None:
        raise ValidationError(f"{where}: the exported model has no output {spec.name}")
    if found.dtype != NUMPY_TYPES[spec.datatype]:
        raise ValidationError(f"{where}: {spec.name} is {found.dtype}, the recipe says {spec.datatype}")
    if found.shape != expected.shape:
        raise ValidationError(f"{where}: {spec.name} has shape {list(found.shape)}, not {list(expected.shape)}")
    as_written = len(found.shape) == 1 + len(spec.shape) and all(
        size in (-1, actual) for size, actual in zip(spec.shape, found.shape[1:], strict=True)
    )
    if not as_written:
        raise ValidationError(f"{where}: {spec.name} has shape {list(found.shape)}, the recipe says {list(spec.shape)}")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValidationError(f"{where}: {spec.name} holds values that are not finite")
    return found


def _real(values: Array, inputs: Arrays) -> Array:
    """Without what stands at padded positions, where a model may answer anything."""
    mask = next((array for name, array in inputs.items() if role(name) == "attention_mask"), None)
    if mask is None or values.dtype.kind != "f" or values.ndim < 2 or values.shape[:2] != mask.shape:
        return values
    unpadded: Array = values[mask == 1]
    return unpadded


def _difference(expected: Array, found: Array) -> tuple[float, float]:
    """Largest absolute error and least cosine of one output."""
    if found.dtype.kind in "iub":
        return (0.0, 1.0) if np.array_equal(found, expected) else (float("inf"), -1.0)
    error = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    return error, _min_cosine(found, expected) if found.ndim > 1 else 1.0


def _min_cosine(found: Array, expected: Array) -> float:
    """The least cosine over the vectors of the last axis; 1 where one is all zero in both."""
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    products = (found.astype(np.float64) * expected).sum(axis=-1)
    cosines = np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), 1.0)
    return float(cosines.min(initial=1.0))
