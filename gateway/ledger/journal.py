"""The append-only journal: what it has taken survives ``kill -9`` at once, and a power cut after the
next sync.

One event loop writes. A frame is in the kernel's hands (write(2) has returned) before ``append``
returns; fsync runs in a thread of its own, every ``sync_s``, or with ``sync_s == 0`` before every
answer (answers that wait at the same time share one). Once an fsync has failed, nothing is taken
until the frames that were not yet durable stand, synced, in a new segment: a second fsync of the
same file would report success for pages that the kernel has dropped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gateway.errors import Unavailable
from gateway.ledger import frames

log = structlog.get_logger(__name__)

SUFFIX = ".journal"
_SEGMENT_BYTES = 8 * 2**20
_UNSYNCED_BYTES = 32 * 2**20
_RETRY_S = 0.25
_IDLE_SYNC_S = 0.005
"""Until a sync that nobody waits for, where every answer has its own."""


class Segment:
    """One file of the journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        """Bytes of intact frames."""
        self.descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Journal:
    """The journal of this process, in a folder that it holds."""

    def __init__(self, folder: Path, *, sync_s: float, max_bytes: int, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self.folder = folder
        self.segments: list[Segment] = []
        """Oldest first; the last is the one being written."""
        self.bytes = 0
        """Size of all segments."""
        self.syncs = 0
        self.failures = 0
        """Writes and syncs that failed."""
        self.broken = False
        """After a failure that may have lost bytes: nothing is taken until they are durable elsewhere."""
        self._delay_s = sync_s or _IDLE_SYNC_S
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max(max_bytes // 8, 4096))
        self._number = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()
        self._unsynced: list[bytes] = []
        self._unsynced_bytes = 0
        self._dirty: list[Segment] = []
        self._syncing: list[Segment] = []
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")
        self._folder_descriptor = -1
        """Open all the time: a sync needs no descriptor that others may have used up."""
        self._named = False
        """Whether the name of the newest segment is not durable yet."""

    @property
    def full(self) -> bool:
        """Whether a bound is reached: no call may begin; those in flight may still end."""
        return self.bytes >= self._max_bytes or self._unsynced_bytes >= _UNSYNCED_BYTES

    def open(self) -> None:
        """Begin the first segment. Raises ``OSError``."""
        self._folder_descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._begin_segment()

    def append(self, kind: int, payload: Any) -> None:
        """Take one frame. Raises :class:`Unavailable` if it could not be written; then it is not there."""
        if self.broken:
            raise _unavailable()
        buffer = self._buffer
        self._encoder.encode_into(payload, buffer, frames.HEADER.size)
        frames.seal(buffer, kind)
        size = len(buffer)
        try:
            segment = self.segments[-1]
            if segment.size + size > self._segment_bytes and segment.size:
                segment = self._begin_segment()
            written = os.write(segment.descriptor, buffer)
            if written != size:
                raise OSError(f"only {written} of {size} bytes were written")
        except OSError as error:
            self._write_failed(error)
            raise _unavailable() from error
        segment.size += size
        self.bytes += size
        self._unsynced.append(bytes(buffer))
        self._unsynced_bytes += size
        dirty = self._dirty
        if not dirty or dirty[-1] is not segment:
            dirty.append(segment)
        if self._timer is None and self._task is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._start)

    async def synced(self) -> None:
        """Wait until all that was taken is durable. Raises :class:`Unavailable` if it could not be made so."""
        if self.broken:
            raise _unavailable()
        if self._unsynced:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            if self._task is None:
                self._start()
            await asyncio.shield(self._waiting)
        elif self._task is not None:
            await asyncio.shield(self._task)
            if self.broken:
                raise _unavailable()

    async def close(self) -> None:
        """Make all durable and close the files. Raises :class:`Unavailable` if that failed."""
        try:
            await self.synced()
        finally:
            if self._task is not None:
                if self.broken:
                    self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            if self._timer is not None:
                self._timer.cancel()
            self._thread.shutdown()
            self.broken = True  # whoever is late is refused
            for segment in {*self.segments, *self._dirty}:
                segment.close()
            if self._folder_descriptor >= 0:
                os.close(self._folder_descriptor)
                self._folder_descriptor = -1

    def read(self, segment: Segment, offset: int) -> bytes:
        """The frames of a segment behind ``offset``. Raises ``OSError``."""
        with segment.path.open("rb") as file:
            file.seek(offset)
            return file.read(segment.size - offset)

    def discard(self, segment: Segment) -> None:
        """Delete a segment, all of whose records are committed; never the one being written."""
        if segment is self.segments[-1]:
            raise ValueError("the segment is being written")
        segment.path.unlink(missing_ok=True)
        self.segments.remove(segment)
        self.bytes -= segment.size
        if segment not in self._dirty and segment not in self._syncing:  # else the sync closes it
            segment.close()

    def _begin_segment(self) -> Segment:
        segment = Segment(self._next_path())
        self._named = True
        self.segments.append(segment)
        return segment

    def _next_path(self) -> Path:
        self._number += 1
        return self.folder / f"{self._number:012d}{SUFFIX}"

    def _write_failed(self, error: OSError) -> None:
        """Take back a write that was cut short; where even that fails, give the segment up."""
        self.failures += 1
        segment = self.segments[-1]
        try:
            os.ftruncate(segment.descriptor, segment.size)
        except OSError:
            self._break()
        log.error("journal.write_failed", error=str(error))

    # --- sync: at most one task, which goes on until nothing waits for it

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._sync())

    async def _sync(self) -> None:
        try:
            while True:
                if self.broken:
                    await self._recover()
                else:
                    await self._sync_once()
                if not self.broken and self._waiting is None:
                    break
        finally:
            self._task = None
        if self._unsynced:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._start)

    async def _sync_once(self) -> None:
        batch, size = self._unsynced, self._unsynced_bytes
        dirty, waiting = self._dirty, self._waiting
        self._unsynced, self._dirty, self._syncing, self._waiting = [], [], dirty, None
        descriptors = [segment.descriptor for segment in dirty]
        named, self._named = self._named, False
        if named:
            descriptors.append(self._folder_descriptor)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, _sync, descriptors)
        except OSError as error:
            self._syncing, self._named = [], self._named or named
            self.failures += 1
            self._unsynced = batch + self._unsynced
            self._dirty = [*dirty, *(segment for segment in self._dirty if segment not in dirty)]
            self._break()
            _fail(waiting)
            log.error("journal.sync_failed", error=str(error))
        else:
            self._syncing = []
            self.syncs += 1
            self._unsynced_bytes -= size
            self._close_written(dirty)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def _break(self) -> None:
        self.broken = True
        waiting, self._waiting = self._waiting, None
        _fail(waiting)
        self._start()

    async def _recover(self) -> None:
        """Write what may be lost into a new segment, and take records again once that is durable."""
        path = self._next_path()
        try:
            segment = await asyncio.get_running_loop().run_in_executor(
                self._thread, _write_segment, path, b"".join(self._unsynced), self._folder_descriptor
            )
        except OSError as error:
            log.warning("journal.still_broken", error=str(error))
            await asyncio.sleep(_RETRY_S)
            return
        dirty, self._dirty = self._dirty, []
        self.segments.append(segment)
        self.bytes += segment.size
        self._unsynced, self._unsynced_bytes = [], 0
        self._close_written(dirty)
        self.broken = False
        log.info("journal.recovered", segment=path.name)

    def _close_written(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            if segment is not self.segments[-1] and segment not in self._dirty:
                segment.close()


def _sync(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.fsync(descriptor)


def _write_segment(path: Path, data: bytes, folder: int) -> Segment:
    segment = Segment(path)
    try:
        view = memoryview(data)
        while segment.size < len(data):
            segment.size += os.write(segment.descriptor, view[segment.size :])
        _sync([segment.descriptor, folder])
    except OSError:
        segment.close()
        path.unlink(missing_ok=True)
        raise
    return segment


def _fail(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_exception(_unavailable())
        waiting.exception()  # retrieved, should nobody wait any more


def _unavailable() -> Unavailable:
    return Unavailable("Usage cannot be recorded at the moment; nothing was billed.", retry_after_s=1.0)
