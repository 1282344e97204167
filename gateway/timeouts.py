"""``async with timeout(seconds)``: what bounds every wait in the gateway. It raises ``asyncio.TimeoutError``.

Not ``asyncio.wait_for``: before Python 3.12 that loses a cancellation which comes as its awaitable ends, and who was
cancelled goes on (https://github.com/python/cpython/issues/86296).
"""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
