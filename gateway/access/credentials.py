"""Where a key may stand in a request: ``Authorization: Bearer``, ``X-API-Key``, or Basic's password."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence

from gateway.errors import Malformed

MAX_CREDENTIAL = 8192
"""Characters; longer ones are refused unread (a JWT with many claims is under 4 KiB)."""

_QUERY_NAMES = ("api_key", "apikey", "api-key", "key", "token", "access_token")


def find_credential(headers: Iterable[tuple[bytes, bytes]], query: Mapping[str, Sequence[str]]) -> str | None:
    """Return what the request presents as its key, or None.

    ``headers`` are ASGI's: lower-case names, in order, repetitions kept. A key in the URL alone is
    no key (URLs end up in logs). Raises :class:`~gateway.errors.Malformed` for two credentials, as
    no two parties would agree which of them counts.
    """
    found: list[str | None] = []
    for name, value in headers:
        if name == b"authorization":
            found.append(_from_authorization(value))
        elif name == b"x-api-key":
            found.append(_text(value))
    if len(found) > 1:
        raise Malformed("More than one credential was sent; send one, in one header.")
    if found and any(name in query for name in _QUERY_NAMES):
        raise Malformed("A credential was sent in the URL and in a header; send it in a header only.")
    return found[0] if found else None


def _from_authorization(value: bytes) -> str | None:
    scheme, _, rest = value.strip().partition(b" ")
    rest = rest.strip()
    if scheme.lower() == b"bearer":
        return _text(rest)
    if scheme.lower() == b"basic":
        try:
            decoded = base64.b64decode(rest, validate=True)
        except (binascii.Error, ValueError):
            return ""
        return _text(decoded.partition(b":")[2])
    return ""  # a scheme that is not served is a credential that is not valid


def _text(value: bytes) -> str:
    if len(value) > MAX_CREDENTIAL:
        return ""
    return value.strip().decode("latin-1")
