"""What both transports read from a request's headers: the key, wherever it may stand (never in the
URL), and the client's own request id.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from gateway.errors import Malformed

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+/=@-]{1,128}")


def acceptable_request_id(wanted: str | None) -> str | None:
    """The client's own request id, if it can stand in a header and a log line as it is."""
    return wanted if wanted and _REQUEST_ID.fullmatch(wanted) else None


def read_credential(headers: Mapping[str, str]) -> str | None:
    """The key in ``Authorization: Bearer``, ``X-API-Key``, or as Basic's password (tritonclient ships
    no other plugin). None if there is none; the empty string if there is one that cannot be read.

    Raises ``Malformed`` for two credentials.
    """
    authorization, api_key = headers.get("authorization"), headers.get("x-api-key")
    if authorization is None:
        return api_key
    if api_key is not None:
        raise Malformed("two credentials: use either Authorization or X-API-Key")
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
