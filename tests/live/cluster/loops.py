"""Clients as threads, which go on until their block ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from typing_extensions import Self


class Loops:
    """Runs the functions given to :meth:`begin` from the block's begin on; they look at ``_stop`` and end."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.seen: list[tuple[int, str, str]] = []
        """What they saw: an answer's status (0: the connection broke), and two words that tell it apart."""

    def begin(self, target: Callable[..., None], *arguments: Any) -> None:
        """Have one more of them."""
        self._threads.append(threading.Thread(target=target, args=arguments))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
