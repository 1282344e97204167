"""The demo key of ``tidegate up``: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.access import keyformat
from gateway.access.audit import Actor, Audit, AuditError
from gateway.access.key import KeySpec
from gateway.access.keys import Keys
from gateway.access.pepper import PepperError
from gateway.errors import GatewayError
from gateway.settings import Settings
from gateway.store.database import Store, StoreError
from gateway.store.files import replace_private

PROJECT = "demo"
_ACTOR = Actor("cli")


class DemoKeyError(Exception):
    """The key cannot be made; one line for the operator."""


def ensure_demo_key(settings: Settings, path: Path) -> None:
    """See that ``path`` holds a key that is valid now, with the scopes ``infer`` and ``usage:read``.

    Raises :class:`DemoKeyError`.
    """
    try:
        present = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        issued = asyncio.run(_valid_or_new(settings, present))
        if issued is not None:
            replace_private(path, issued.encode() + b"\n")
        path.chmod(0o600)
    except (AuditError, PepperError, StoreError, OSError) as error:
        raise DemoKeyError(f"the demo key cannot be made: {error}") from error
    except GatewayError as error:
        raise DemoKeyError(f"the demo key cannot be made: {error.message}") from error


async def _valid_or_new(settings: Settings, present: str) -> str | None:
    """A new key, or None if ``present`` is valid."""
    store = await Store.open(settings)
    try:
        keys = await Keys(store, Audit(store, settings), settings).open()
        if await _is_valid(keys, present):
            return None
        await keys.ensure_project(PROJECT, PROJECT, _ACTOR)
        spec = KeySpec(project=PROJECT, label="demo", scopes=("infer", "usage:read"))
        return (await keys.create(spec, _ACTOR)).text
    finally:
        await store.close()


async def _is_valid(keys: Keys, text: str) -> bool:
    presented = keyformat.parse(text)
    return presented is not None and await keys.verify(presented) is not None
