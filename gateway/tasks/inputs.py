"""What every task asks of its inputs."""

from __future__ import annotations

from typing import Any

from gateway.errors import Invalid


class EmptyInput(Invalid):
    """A call without anything to work on: no texts, no pictures."""


def as_list(inputs: Any, limit: int, param: str = "inputs") -> tuple[list[Any], bool]:
    """``inputs`` as a list, and whether it was a single one. Raises ``EmptyInput``, ``Invalid`` for too many."""
    if not isinstance(inputs, list):
        return [inputs], True
    if not inputs:
        raise EmptyInput(f"{param} is empty", param=param)
    if len(inputs) > limit:
        raise Invalid(f"{param}: {len(inputs)} items; at most {limit} are taken in one call", param=param)
    return inputs, False
