"""Strict JSON for every dialect: what is not JSON, or not in the wanted form, is the caller's error.

Decoding is msgspec's (RFC 8259: no NaN, no trailing characters, UTF-8 only, no lone surrogates). Three
things that it lets pass are refused here without parsing twice: an object that names a member twice,
values nested deeper than ``MAX_DEPTH``, and more of them than anybody needs (it holds the interpreter's
lock, so that a thread would not help).
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from gateway.errors import Invalid, Malformed, TooLarge

T = TypeVar("T")

MAX_DEPTH = 100
"""Containers in containers; Triton's own limit."""
MAX_PARTS = 1_000_000
"""Lists, objects and members of a body. Three bytes make an empty list, which takes 64 in memory."""
MAX_VALUES = 2**21
"""Values of a body, by its commas. Two bytes make a number, which takes 32 in memory; larger tensors are for binary
data, and texts have a limit of their own.
"""

_KEY = re.compile(rb'"[ \t\r\n]*:')
_CONTAINERS = (dict, list)


def decode_json(body: bytes | memoryview, form: type[T]) -> T:
    """``body`` as ``form`` (anything msgspec decodes).

    Raises ``Malformed`` for what is not JSON, ``Invalid`` for JSON of another form, ``TooLarge``.
    """
    raw = body if isinstance(body, bytes) else bytes(body)
    value = decode(raw)
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        raise Invalid(_lower(str(error))) from error


def decode(body: bytes) -> Any:
    """``body`` as plain dicts, lists, strings, numbers. Raises ``Malformed``, or ``TooLarge`` for too many of them."""
    if len(body) > MAX_PARTS:
        _check_amount(body)
    try:
        value = msgspec.json.decode(body)
    except msgspec.ValidationError as error:  # a number that no double can hold
        raise Malformed(f"the body is not valid JSON: {_lower(str(error))}") from error
    except msgspec.DecodeError as error:
        raise Malformed(_lower(str(error)).replace("jSON is malformed", "the body is not valid JSON")) from error
    except UnicodeDecodeError as error:
        raise Malformed("the body is not valid JSON: not UTF-8") from error
    except RecursionError as error:
        raise Malformed(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    if type(value) in _CONTAINERS:
        _check(body, value)
    return value


def _check_amount(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") + body.count(b":") > MAX_PARTS:
        raise TooLarge(f"the body has more than {MAX_PARTS} lists, objects and members")
    if body.count(b",") >= MAX_VALUES:
        raise TooLarge(f"the body has more than {MAX_VALUES} values")


def encode(value: Any) -> bytes:
    """``value`` as JSON; NaN and infinities become null, which is what JSON has for them."""
    return msgspec.json.encode(value)


def _check(body: bytes, value: Any) -> None:
    """Raise ``Malformed`` if an object in ``body``, decoded to ``value``, repeats a member, or is too deep.

    The bytes hold at least as many colons as members and at least as many brackets as containers
    (texts may hold more). So when what was found by walking equals what the bytes hold, nothing was
    lost to a repeated name and nothing was overlooked. Otherwise a slower, exact look decides.
    """
    brackets = body.count(b"{") + body.count(b"[")
    members, containers, depth = _walk(value, thorough=False)
    if brackets > MAX_DEPTH and (depth > MAX_DEPTH or containers != brackets):
        _, _, depth = _walk(value, thorough=True)
        if depth > MAX_DEPTH:
            raise Malformed(f"the body is nested deeper than {MAX_DEPTH} levels")
    if members != body.count(b":") and members != len(_KEY.findall(body)):
        json.loads(body, object_pairs_hook=_unique, parse_int=str, parse_float=str)


def _walk(value: Any, *, thorough: bool) -> tuple[int, int, int]:
    """Members, containers and depth of ``value``.

    Not ``thorough``: a list is looked into only if its first element is a container, so that long
    lists of numbers cost nothing.
    """
    members = containers = depth = 0
    level = [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        containers += len(level)
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                members += len(container)
                below += [child for child in container.values() if type(child) in _CONTAINERS]
            elif thorough or (container and type(container[0]) in _CONTAINERS):
                below += [child for child in container if type(child) in _CONTAINERS]
        level = below
    return members, containers, depth


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            _refuse(name)
        names.add(name)


def _refuse(name: str) -> NoReturn:
    raise Malformed(f"the body names {name[:64]!r} twice in one object")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
