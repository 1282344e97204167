"""What the dialects' JSON schemas share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def nullable(properties: Mapping[str, Any], required: Collection[str] = ()) -> dict[str, Any]:
    """``properties`` where a null is the same as nothing, but for the ``required`` ones."""
    return {
        name: schema if name in required else {"anyOf": [schema, {"type": "null"}]}
        for name, schema in properties.items()
    }
