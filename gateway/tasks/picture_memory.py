"""What pictures take together while they are decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

LIMIT = 2**29
"""Bytes; two pictures of 50 million pixels each, as most are."""
_BLOCK = 64 * 2**20
"""Bytes that Pillow allocates at once. Its own 16 MiB glibc keeps for the thread that had them, larger ones go back
to the system."""


class PictureMemory:
    """Shared by all threads that decode: who would take more than is left of ``limit`` bytes waits for the others.

    A small file may be a large picture, so that neither the size of bodies nor the number of threads bounds this.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._left = limit
        self._changed = threading.Condition()
        self._first = threading.Lock()
        """Held by the one that waits: a large picture is not overtaken by small ones for ever."""
        Image.core.set_block_size(_BLOCK)  # type: ignore[attr-defined]

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Have ``size`` bytes until the block ends; all there is, and alone, for what is larger."""
        taken = min(size, self._limit)
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()
