"""The text of an API key: ``tg_live_<id>_<secret>_<checksum>``. Pure; no store, no clock.

The checksum is CRC-32 of everything before its underscore in base62, six characters, as GitHub's
tokens have it: a scanner or a gateway tells a mistyped key without asking anybody. CRC-32 finds
every error that spans at most 32 bits, hence every single mistyped character.
"""

from __future__ import annotations

import re
import secrets
import zlib
from dataclasses import dataclass

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 12
SECRET_LENGTH = 32
"""Characters of base62: 190 bits."""
CHECKSUM_LENGTH = 6

PATTERN = (
    rf"tg_(?:live|test)_[0-9A-Za-z]{{{ID_LENGTH}}}_[0-9A-Za-z]{{{SECRET_LENGTH}}}_[0-9A-Za-z]{{{CHECKSUM_LENGTH}}}"
)
"""For secret scanners; a match whose checksum holds is a key."""

_KEY = re.compile(
    rf"(tg_(live|test)_([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}}))_([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
LENGTH = len("tg_live_") + ID_LENGTH + 1 + SECRET_LENGTH + 1 + CHECKSUM_LENGTH


@dataclass(slots=True, frozen=True)
class PresentedKey:
    """A key whose form and checksum hold; whether it exists is the store's to say."""

    text: str
    key_id: str
    test: bool

    def __repr__(self) -> str:
        return f"PresentedKey(key_id={self.key_id!r})"  # the secret stays out of logs and tracebacks


def parse(text: str) -> PresentedKey | None:
    """Read a presented key; None if its prefix, length, characters or checksum are wrong."""
    if len(text) != LENGTH:
        return None
    match = _KEY.fullmatch(text)
    if match is None or checksum(match[1]) != match[5]:
        return None
    return PresentedKey(text=text, key_id=match[3], test=match[2] == "test")


def generate_id() -> str:
    """Draw the public id of a new key."""
    return _random(ID_LENGTH)


def generate(key_id: str, *, test: bool) -> PresentedKey:
    """Draw a secret for ``key_id`` and write out the key."""
    body = f"tg_{'test' if test else 'live'}_{key_id}_{_random(SECRET_LENGTH)}"
    return PresentedKey(text=f"{body}_{checksum(body)}", key_id=key_id, test=test)


def checksum(body: str) -> str:
    """CRC-32 of ``body`` in base62, padded to six characters."""
    value = zlib.crc32(body.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
