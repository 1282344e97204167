import asyncio
import errno
import os
import resource
import stat

import pytest
import structlog

from gateway.errors import Unavailable
from gateway.ledger.frames import Damage, Frame, scan
from gateway.ledger.journal import SUFFIX, Journal
from tests.gateway.ledger.support import until


@pytest.fixture
async def make_journal(tmp_path):
    """Opens journals in ``tmp_path``; closes them at the end."""
    journals = []

    def make(sync_s=0.02, max_bytes=2**24, **options):
        journal = Journal(tmp_path, sync_s=sync_s, max_bytes=max_bytes, **options)
        journal.open()
        journals.append(journal)
        return journal

    yield make
    for journal in journals:
        try:
            await journal.close()
        except Unavailable:
            assert journal.broken


@pytest.fixture
def limit_file_size():
    """Sets RLIMIT_FSIZE: the kernel cuts a write short, then refuses it, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else before[0], before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def written(folder):
    """Payload lengths of the intact frames on disk, and the damage."""
    frames, damage = [], []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for found in scan(path.read_bytes()):
            frames.append(bytes(found.payload)) if isinstance(found, Frame) else damage.append(found)
    return frames, damage


def replace_file(journal, path, flags):
    """Put another file behind the descriptor of the segment being written."""
    other = os.open(path, flags)
    os.dup2(other, journal.segments[-1].descriptor)
    os.close(other)


async def test_what_was_taken_is_in_the_file_at_once(make_journal, tmp_path):
    journal = make_journal(sync_s=3600)
    for number in range(3):
        journal.append(1, number)
    assert written(tmp_path) == ([b"\x00", b"\x01", b"\x02"], [])
    assert journal.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert journal.syncs == 0


async def test_files_are_for_the_owner_only(make_journal, tmp_path):
    make_journal().append(1, "secret")
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_it_is_synced_once_an_interval_and_not_without_need(make_journal):
    journal = make_journal(sync_s=0.02)
    for number in range(100):
        journal.append(1, number)
    await until(lambda: journal.syncs)
    assert journal.syncs == 1
    assert journal._timer is None


async def test_those_who_wait_for_a_sync_share_it(make_journal):
    journal = make_journal(sync_s=0)
    answered = []

    async def answer(number):
        journal.append(1, number)
        await journal.synced()
        answered.append(number)

    await asyncio.gather(*(answer(number) for number in range(50)))
    assert sorted(answered) == list(range(50))
    assert 1 <= journal.syncs <= 3


async def test_segments_rotate_and_are_deleted_one_by_one(make_journal, tmp_path):
    journal = make_journal(max_bytes=2**20, segment_bytes=4096)
    for _ in range(50):
        journal.append(1, "x" * 500)
    assert len(journal.segments) == 8
    assert all(segment.size <= 4096 for segment in journal.segments)
    first = journal.segments[0]
    size = journal.bytes
    journal.discard(first)
    assert journal.bytes == size - first.size
    assert len(list(tmp_path.iterdir())) == 7
    with pytest.raises(ValueError, match="being written"):
        journal.discard(journal.segments[-1])
    await journal.synced()
    descriptors = [segment.descriptor for segment in journal.segments]
    assert descriptors[:-1] == [-1] * 6


async def test_it_says_that_it_is_full(make_journal):
    journal = make_journal(max_bytes=2**16)
    while not journal.full:
        journal.append(1, "x" * 1000)
    assert 2**16 <= journal.bytes < 2**16 + 1100
    journal.append(1, "calls in flight may still end")


async def test_a_write_cut_short_is_taken_back_and_taken_up_again(make_journal, tmp_path, limit_file_size):
    journal = make_journal()
    journal.append(1, "a" * 500)
    limit_file_size(800)
    with pytest.raises(Unavailable):
        journal.append(1, "b" * 500)
    assert written(tmp_path)[1] == []
    with pytest.raises(Unavailable):
        journal.append(1, "c" * 500)
    assert not journal.broken
    limit_file_size(None)
    journal.append(1, "d" * 500)
    frames, damage = written(tmp_path)
    assert [frame[-1:] for frame in frames] == [b"a", b"d"]
    assert damage == []


async def test_a_full_disk_refuses_and_recovers_by_itself(make_journal, tmp_path):
    journal = make_journal()
    journal.append(1, "before")
    replace_file(journal, "/dev/full", os.O_WRONLY)  # every write: ENOSPC, and it cannot be truncated
    with pytest.raises(Unavailable) as refusal:
        journal.append(1, "during")
    assert refusal.value.retry_after_s
    assert journal.broken
    await until(lambda: not journal.broken)
    journal.append(1, "after")
    frames, _ = written(tmp_path)
    assert [frame[1:] for frame in frames] == [b"before", b"before", b"after"]


@pytest.fixture
def failing_log():
    """A log on the disk that is full."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    structlog.configure(processors=[fail])
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("failing_log")
async def test_a_log_that_fails_too_leaves_no_half_frame_and_no_journal_that_looks_well(
    make_journal, tmp_path, limit_file_size
):
    journal = make_journal()
    journal.append(1, "a" * 500)
    limit_file_size(800)
    with pytest.raises(OSError, match="space"):
        journal.append(1, "b" * 500)
    assert written(tmp_path)[1] == []
    limit_file_size(None)
    replace_file(journal, "/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="space"):
        journal.append(1, "c")
    assert journal.broken


async def test_after_a_failed_sync_nothing_is_acknowledged_until_it_is_durable_elsewhere(make_journal, tmp_path):
    journal = make_journal(sync_s=0)
    journal.append(1, "durable")
    await journal.synced()
    reader, writer = os.pipe()
    os.dup2(writer, journal.segments[-1].descriptor)  # a pipe takes writes, and its fsync fails
    journal.append(1, "doubtful")
    with pytest.raises(Unavailable):
        await journal.synced()
    assert journal.broken
    assert journal.failures == 1
    with pytest.raises(Unavailable):
        journal.append(1, "refused")
    with pytest.raises(Unavailable):
        await journal.synced()
    await until(lambda: not journal.broken)
    journal.append(1, "later")
    await journal.synced()
    frames, damage = written(tmp_path)
    assert [frame[1:] for frame in frames] == [b"durable", b"doubtful", b"later"]
    assert damage == []
    os.close(reader)
    os.close(writer)


async def test_while_the_folder_takes_no_file_it_stays_broken(make_journal, tmp_path):
    journal = make_journal(sync_s=0)
    replace_file(journal, "/dev/full", os.O_WRONLY)
    hidden = tmp_path.with_name("hidden")
    tmp_path.rename(hidden)
    with pytest.raises(Unavailable):
        journal.append(1, 1)
    await until(lambda: journal._number > 3)  # it has tried, and tried again
    assert journal.broken
    hidden.rename(tmp_path)
    await until(lambda: not journal.broken)
    journal.append(1, 2)


async def test_closing_makes_all_durable(tmp_path):
    journal = Journal(tmp_path, sync_s=3600, max_bytes=2**20)
    journal.open()
    journal.append(1, 1)
    await journal.close()
    assert journal.syncs == 1
    assert journal.segments[-1].descriptor == -1


async def test_reading_gives_what_was_written_since(make_journal):
    journal = make_journal()
    journal.append(1, "one")
    offset = journal.segments[-1].size
    journal.append(1, "two")
    (frame,) = scan(journal.read(journal.segments[-1], offset))
    assert not isinstance(frame, Damage)
    assert bytes(frame.payload)[1:] == b"two"
