from __future__ import annotations

import asyncio
import dataclasses
import json
import stat
import threading

import pytest
import sqlalchemy as sa

from gateway.access.audit import SYSTEM, Actor, Audit, AuditError
from gateway.access.chain import AuditRecord, Checkpoint, canonical
from gateway.errors import Unavailable
from gateway.store.tables import audit_checkpoints, audit_records, organisations

RECORDS = 10


@pytest.fixture
async def written(audit):
    """An audit of ten records."""
    for number in range(1, RECORDS + 1):
        await audit.record(Actor("key1", f"request{number}", "192.0.2.1"), "test.act", f"object{number}")
    return audit


async def tamper(store, *statements) -> None:
    """Change the tables as their owner can: with the triggers out of the way."""
    async with store.write() as connection:
        for table in ("audit_records", "audit_checkpoints"):
            if store.kind == "postgresql":
                await connection.execute(sa.text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
            else:
                for change in ("update", "delete"):
                    await connection.execute(sa.text(f"DROP TRIGGER IF EXISTS {table}_no_{change}"))
        for statement in statements:
            await connection.execute(statement)


def rehashed(record: AuditRecord) -> AuditRecord:
    return dataclasses.replace(record, hash=record.computed_hash())


def insertion(record: AuditRecord):
    return sa.insert(audit_records).values(**dataclasses.asdict(record))


def removal(condition):
    return sa.delete(audit_records).where(condition)


async def finding(audit: Audit) -> int | None:
    found = await audit.verify()
    return None if found.finding is None else found.finding.sequence


async def test_an_untouched_chain_is_whole(written):
    found = await written.verify()
    assert found.whole
    assert (found.records, found.checkpoints, found.anchored) == (RECORDS, RECORDS, RECORDS)


class Stalling:
    """A signing key whose public half takes as long as it is told to."""

    def __init__(self, key):
        self._key = key
        self.asked, self.released = threading.Event(), threading.Event()

    def sign(self, payload):
        return self._key.sign(payload)

    def public_key(self):
        return self

    def verify(self, signature, payload):
        self.asked.set()
        assert self.released.wait(30), "the verification holds everything else up"
        self._key.public_key().verify(signature, payload)


@pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True)
async def test_others_go_on_while_the_chain_is_verified(written):
    written._key = stalling = Stalling(written._key)
    first, second = (asyncio.create_task(written.verify()) for _ in range(2))
    assert await asyncio.to_thread(stalling.asked.wait, 30)
    await written.record(SYSTEM, "test.act", "meanwhile")
    assert len(await written.records()) == RECORDS + 1
    assert not first.done()
    assert not second.done()
    stalling.released.set()
    for found in (await first, await second):
        assert found.whole
        assert found.records == RECORDS + 1


@pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True)
async def test_a_chain_of_many_pages_is_verified(written, monkeypatch, store):
    monkeypatch.setattr("gateway.access.audit._PAGE", 3)
    found = await written.verify()
    assert found.whole
    assert (found.records, found.checkpoints, found.anchored) == (RECORDS, RECORDS, RECORDS)
    await tamper(store, sa.delete(audit_checkpoints).where(audit_checkpoints.c.number == 7))
    assert await finding(written) == 7


async def test_an_empty_chain_is_whole(audit):
    assert (await audit.verify()).whole


async def test_a_changed_field_is_found(written, store):
    fields = ("address", "request_id", "details", "result", "object", "action", "actor", "at")
    for sequence, column in zip(range(RECORDS, 0, -1), fields, strict=False):
        value = 1 if column == "at" else '{"x":1}'
        change = sa.update(audit_records).where(audit_records.c.sequence == sequence).values({column: value})
        await tamper(store, change)
        assert await finding(written) == sequence, column


async def test_a_changed_record_with_its_hash_made_again_is_found(written, store):
    record = (await written.records(after=3, limit=1))[0]
    forged = rehashed(dataclasses.replace(record, actor="somebody else"))
    values = {"actor": forged.actor, "hash": forged.hash}
    await tamper(store, sa.update(audit_records).where(audit_records.c.sequence == 4).values(values))
    assert await finding(written) == 4


async def test_a_chain_forged_from_one_record_on_is_found(written, store):
    records = await written.records()
    forged = [*records[:3]]
    for record in records[3:]:
        changed = dataclasses.replace(record, actor="forged", previous_hash=forged[-1].hash)
        forged.append(rehashed(changed))
    await tamper(store, removal(audit_records.c.sequence > 3), *(insertion(record) for record in forged[3:]))
    assert await finding(written) == 4


async def test_a_deleted_record_is_found(written, store):
    await tamper(store, removal(audit_records.c.sequence == 4))
    assert await finding(written) == 4


async def test_a_deleted_record_with_the_rest_moved_up_is_found(written, store):
    records = await written.records()
    kept = [*records[:3]]
    for record in records[4:]:
        moved = dataclasses.replace(record, sequence=record.sequence - 1, previous_hash=kept[-1].hash)
        kept.append(rehashed(moved))
    await tamper(store, removal(audit_records.c.sequence > 3), *(insertion(record) for record in kept[3:]))
    assert await finding(written) == 4


async def test_a_tail_cut_off_is_found(written, store):
    await tamper(store, removal(audit_records.c.sequence > 7))
    assert await finding(written) == 8


async def test_a_tail_cut_off_with_its_checkpoints_is_found(written, store):
    await tamper(
        store,
        removal(audit_records.c.sequence > 7),
        sa.delete(audit_checkpoints).where(audit_checkpoints.c.sequence > 7),
    )
    assert await finding(written) == 8


async def test_records_in_another_order_are_found(written, store):
    fourth, fifth = await written.records(after=3, limit=2)
    swapped = [dataclasses.replace(fifth, sequence=4), dataclasses.replace(fourth, sequence=5)]
    await tamper(store, removal(audit_records.c.sequence.in_([4, 5])), *(insertion(record) for record in swapped))
    assert await finding(written) == 4


async def test_an_inserted_record_is_found(written, store):
    records = await written.records()
    new = rehashed(dataclasses.replace(records[3], actor="intruder"))
    chain = [*records[:3], new]
    for record in records[3:]:
        moved = dataclasses.replace(record, sequence=record.sequence + 1, previous_hash=chain[-1].hash)
        chain.append(rehashed(moved))
    await tamper(store, removal(audit_records.c.sequence > 3), *(insertion(record) for record in chain[3:]))
    assert await finding(written) == 4


async def test_everything_deleted_and_begun_again_is_found(written, store, settings):
    await tamper(store, sa.delete(audit_records), sa.delete(audit_checkpoints))
    restarted = Audit(store, settings)
    assert await finding(restarted) == 1
    await restarted.record(SYSTEM, "test.act", "after")
    assert await finding(restarted) == 1


async def test_an_old_backup_put_back_is_found(written, store, settings):
    kept = await written.records()
    async with store.read() as connection:
        rows = (await connection.execute(sa.select(audit_checkpoints))).mappings().all()
    await written.record(SYSTEM, "test.act", "after the backup")
    await tamper(
        store,
        sa.delete(audit_records),
        sa.delete(audit_checkpoints),
        *(insertion(record) for record in kept),
        *(sa.insert(audit_checkpoints).values(**row) for row in rows),
    )
    restarted = Audit(store, settings)
    assert await finding(restarted) == RECORDS + 1
    await restarted.record(SYSTEM, "test.act", "history goes another way")
    assert await finding(restarted) == RECORDS + 1


async def test_a_checkpoint_signed_by_another_is_found(written, store):
    await tamper(store, sa.update(audit_checkpoints).where(audit_checkpoints.c.number == 4).values(signature="00" * 64))
    assert await finding(written) == 4


async def test_a_deleted_checkpoint_is_found(written, store):
    await tamper(store, sa.delete(audit_checkpoints).where(audit_checkpoints.c.number == 4))
    assert await finding(written) == 4


async def test_without_the_anchor_the_last_checkpoint_still_holds(written, store):
    written.anchor_file.unlink()
    await tamper(store, removal(audit_records.c.sequence > 7))
    found = await written.verify()
    assert found.finding.sequence == 8
    assert found.anchored == 0


async def test_an_anchor_with_a_foreign_line_is_found(written):
    lines = written.anchor_file.read_bytes().splitlines(keepends=True)
    lines[3] = b"nonsense\n"
    written.anchor_file.write_bytes(b"".join(lines))
    assert await finding(written) == 4
    forged = Checkpoint(4, 4, "0" * 64, 1, "0" * 64, "00" * 64)
    lines[3] = canonical(dataclasses.asdict(forged)).encode() + b"\n"
    written.anchor_file.write_bytes(b"".join(lines))
    assert await finding(written) == 4


async def test_a_torn_last_line_of_the_anchor_is_mended(written, store, settings):
    with written.anchor_file.open("ab") as anchor:
        anchor.write(b'{"number":11,"seq')
    assert (await written.verify()).whole
    restarted = Audit(store, settings)
    await restarted.record(SYSTEM, "test.act", "after")
    assert (await restarted.verify()).whole


async def test_two_writers_make_one_chain(store, settings, tmp_path):
    writers = [Audit(store, settings) for _ in range(2)]
    await asyncio.gather(*(writers[number % 2].record(SYSTEM, "test.act", str(number)) for number in range(20)))
    found = await writers[0].verify()
    assert found.whole
    assert found.records == 20


async def test_an_operation_undone_leaves_no_record(audit, store):
    async def fail() -> None:
        async with audit.operation(SYSTEM, "organisation.create", "acme") as operation:
            await operation.connection.execute(sa.insert(organisations).values(name="acme", created_at=1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await audit.records() == []
    async with store.read() as connection:
        assert (await connection.execute(sa.select(organisations))).all() == []


async def test_an_anchor_that_cannot_be_written_refuses_the_next_operation(audit):
    audit.anchor_file.mkdir()
    await audit.record(SYSTEM, "test.act", "one")
    with pytest.raises(Unavailable):
        await audit.record(SYSTEM, "test.act", "two")
    audit.anchor_file.rmdir()
    await audit.record(SYSTEM, "test.act", "three")
    found = await audit.verify()
    assert found.whole
    assert (found.records, found.anchored) == (2, 2)


async def test_an_anchor_that_falls_behind_is_told_and_caught_up_by_a_verification(audit):
    await audit.record(SYSTEM, "test.act", "one")
    assert (audit.unanchored, audit.appended) == (0, 1)
    anchor = audit.anchor_file.read_bytes()
    audit.anchor_file.unlink()
    audit.anchor_file.mkdir()
    await audit.record(SYSTEM, "test.act", "two")
    assert (audit.unanchored, audit.appended) == (1, 2)
    audit.anchor_file.rmdir()
    audit.anchor_file.write_bytes(anchor)
    found = await audit.verify()
    assert (found.whole, found.anchored, audit.unanchored) == (True, 2, 0)


async def test_text_cannot_break_out_of_a_record(audit):
    nasty = 'a\r\n{"x":1}\x1b[31m"\u202e\\'
    async with audit.operation(Actor(nasty * 100, nasty * 100, nasty), "test.act", nasty * 100) as operation:
        operation.details["label"] = nasty
    record = (await audit.records())[0]
    assert json.loads(record.details) == {"label": nasty}
    assert record.details.isascii()
    assert len(record.actor) == len(record.request_id) == 128
    assert (await audit.verify()).whole


async def test_key_and_anchor_are_private(written, settings):
    for name in ("audit.key", "audit.anchor"):
        assert stat.S_IMODE((settings.data_dir / name).stat().st_mode) == 0o600


async def test_records_come_in_pages_either_way(written):
    assert [record.sequence for record in await written.records(limit=3)] == [1, 2, 3]
    assert [record.sequence for record in await written.records(limit=3, after=3)] == [4, 5, 6]
    assert [record.sequence for record in await written.records(limit=3, newest_first=True)] == [10, 9, 8]
    assert [record.sequence for record in await written.records(limit=3, after=8, newest_first=True)] == [7, 6, 5]


async def test_a_key_that_is_none_is_refused(store, settings):
    Audit(store, settings)
    (settings.data_dir / "audit.key").write_text("nonsense")
    with pytest.raises(AuditError):
        Audit(store, settings)


async def test_a_wall_clock_stepped_back_and_forth_breaks_no_chain(written, wall):
    for step in (-86_400, 3 * 86_400, -3_600):
        wall.forward(step)
        await written.record(SYSTEM, "test.act", f"stepped by {step}")
    found = await written.verify()
    assert found.whole
    assert found.records == RECORDS + 3
