"""API keys where they do not belong: pasted into a request id, a label, a field's name, and so into a log line.

Nothing else in the program is imported here: the error tree and the logs stand on it.
"""

from __future__ import annotations

import re

_KEY = re.compile(r"(tg_(?:live|test)_[0-9A-Za-z]{1,12}_)[0-9A-Za-z_]{8,}")
"""A key, or what is left of one that was mistyped or cut short."""


def holds_key(text: str) -> bool:
    """Whether an API key stands somewhere in ``text``."""
    return "tg_" in text and _KEY.search(text) is not None


def redact(text: str) -> str:
    """``text`` with the secret part of every API key masked; the key's id, which is no secret, stays."""
    return _KEY.sub(r"\1***", text) if "tg_" in text else text
