"""An application that is made when somebody first wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

App = Callable[[Any, Any, Any], Awaitable[None]]


class Late:
    """ASGI: what ``make`` makes. Made in a thread, once, so that requests of others go on meanwhile.

    FastAPI and its models are a tenth of an idle gateway's memory, and many a gateway is never administered.
    """

    def __init__(self, make: Callable[[], App]) -> None:
        self._make = make
        self._app: App | None = None
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        app = self._app
        if app is None:
            async with self._lock:
                if self._app is None:
                    self._app = await asyncio.to_thread(self._make)
                app = self._app
        await app(scope, receive, send)
