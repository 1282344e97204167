"""What both transports read from a request's headers beside its key."""

from __future__ import annotations

import re
from functools import lru_cache

from gateway.redaction import holds_key

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+/=@-]{1,128}")


def acceptable_request_id(wanted: str | None) -> str | None:
    """The client's own request id, if it can stand in a header, a log line and a record as it is."""
    return wanted if wanted and _REQUEST_ID.fullmatch(wanted) and not holds_key(wanted) else None


@lru_cache(256)
def is_acceptable(accept: str, produced: tuple[str, ...]) -> bool:
    """Whether ``Accept`` allows one of the media types ``produced``; a range with ``q=0`` allows nothing."""
    best: dict[str, tuple[int, bool]] = {}
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        allowed = not any(re.fullmatch(r"q=0(\.0{0,3})?", parameter) for parameter in parameters)
        for media_type in produced:
            kind = media_type.partition("/")[0]
            rank = {"*/*": 1, f"{kind}/*": 2, media_type: 3}.get(media_range, 0)
            if rank and rank >= best.get(media_type, (0, False))[0]:  # the most specific range decides
                best[media_type] = (rank, allowed)
    return any(allowed for _, allowed in best.values())
