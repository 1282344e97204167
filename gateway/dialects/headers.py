"""What both transports read from a request's headers beside its key."""

from __future__ import annotations

import re

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+/=@-]{1,128}")


def acceptable_request_id(wanted: str | None) -> str | None:
    """The client's own request id, if it can stand in a header and a log line as it is."""
    return wanted if wanted and _REQUEST_ID.fullmatch(wanted) else None
