"""The power goes: of the journal there is what the last sync made durable, and not a byte more.

What a page holds that was written and not synced is lost; the test cuts every file to what it held when its last
fsync began.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from gateway.ledger.journal import SUFFIX
from tests.gateway.ledger.support import abandon, fetch, make_call, serve, until


class Disk:
    """Watches fsync: what is durable of each file, and how many calls had been answered when its sync began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answered: list[str] = []
        """Usage ids, in the order of their answers."""
        self.durable: dict[Path, int] = {}
        self.safe = 0
        """How many of the answered must survive."""
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        size, answered = os.fstat(descriptor).st_size, len(self.answered)
        self._fsync(descriptor)
        if path.suffix == SUFFIX:
            self.durable[path] = size
            self.safe = max(self.safe, answered)

    def cut(self, folder: Path) -> None:
        """Leave of the journal in ``folder`` what a power cut leaves."""
        for path in folder.glob(f"*{SUFFIX}"):
            os.truncate(path, self.durable.get(path, 0))


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


async def replayed(make_ledger, store, settings):
    """Every call's state, once a new gateway has read what is left."""
    ledger = await make_ledger(interval_s=0.02)
    root = settings.data_dir / "journal"
    await until(lambda: [path.name for path in root.iterdir() if path.name[0] != "."] == [ledger.gateway_id])
    return dict(await fetch(store, "SELECT usage_id, state FROM usage_records"))


async def test_with_every_answer_synced_nothing_is_lost(make_ledger, store, settings, disk):
    ledger = await make_ledger(journal_sync_ms=0.0)
    forwarded = []

    async def client():
        for _ in range(10):
            disk.answered.append((await serve(ledger)).usage_id)
        call = make_call()
        await ledger.reserve(call)
        forwarded.append(call.usage_id)

    await asyncio.gather(*(client() for _ in range(8)))
    abandon(ledger)
    disk.cut(ledger._folder.path)
    states = await replayed(make_ledger, store, settings)
    assert {states[usage_id] for usage_id in disk.answered} == {"completed"}
    assert {states[usage_id] for usage_id in forwarded} == {"unknown"}


async def test_otherwise_what_was_answered_since_the_last_sync_began_is_lost_and_no_more(
    make_ledger, store, settings, disk
):
    ledger = await make_ledger(journal_sync_ms=5.0)
    while ledger._journal.syncs < 5:
        disk.answered.append((await serve(ledger)).usage_id)
        await asyncio.sleep(0.0005)
    await until(lambda: not ledger._journal._unsynced and ledger._journal._task is None)
    last = (await serve(ledger)).usage_id  # answered at once: the timer of its sync has not run
    abandon(ledger)
    disk.cut(ledger._folder.path)
    states = await replayed(make_ledger, store, settings)
    assert disk.safe > 0
    assert {states[usage_id] for usage_id in disk.answered[: disk.safe]} == {"completed"}
    assert last not in states  # the bound is no smaller than it says
