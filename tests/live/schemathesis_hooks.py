"""Loaded by schemathesis: random names are nobody's models, so most calls are given a served one's."""

from __future__ import annotations

import itertools
import os
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation

_MODELS = os.environ["FUZZED_MODELS"].split(",")
_TURNS = itertools.count()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Three of four calls go to the served models in turn, and no name of a request is used twice.

    Not where the name itself is what the call tries.
    """
    turn = next(_TURNS)
    if turn % 4 and not _tries(case, ParameterLocation.PATH):
        for name, value in {"model": _MODELS[turn % len(_MODELS)], "version": "1"}.items():
            if name in case.path_parameters:
                case.path_parameters[name] = value
    if "Idempotency-Key" in (case.headers or {}) and not _tries(case, ParameterLocation.HEADER):
        case.headers["Idempotency-Key"] = f"turn-{turn}"


def _tries(case: Any, location: ParameterLocation) -> bool:
    """Whether something is wrong on purpose in this part of the request."""
    component = case.meta.components.get(location) if case.meta is not None else None
    return component is not None and component.mode.is_negative
