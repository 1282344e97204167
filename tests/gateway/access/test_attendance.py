"""Who stopped writing to the audit without a word."""

from __future__ import annotations

import pytest

from gateway.access.access import ModelChanges
from gateway.access.attendance import EVERY_S, PRESENT, STARTED, STOPPED
from gateway.access.audit import SYSTEM
from gateway.access.presence import Presence
from tests.gateway.access.support import make_call, make_principal

pytestmark = pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True)  # the records are the same


@pytest.fixture
def make_presence(audit, clock):
    return lambda name: Presence(audit, name, clock=clock)


async def silences(audit):
    found = await audit.verify()
    assert found.whole
    return [(silence.gateway, silence.sequence) for silence in found.silences]


def forward(clock, wall, seconds):
    clock.forward(seconds)
    wall.forward(seconds)


async def test_a_gateway_that_runs_and_ends_is_no_silence(audit, make_presence, clock, wall):
    presence = make_presence("one")
    await presence.start()
    for _ in range(5):
        forward(clock, wall, EVERY_S)
        await presence.say()
        await presence.say()  # not due
    await presence.stop()
    forward(clock, wall, 100 * EVERY_S)
    await audit.record(SYSTEM, "test.act", "much later")
    assert await silences(audit) == []
    written = [(record.action, record.object) for record in await audit.records()][:-1]
    assert written == [(STARTED, "one"), *[(PRESENT, "one")] * 5, (STOPPED, "one")]


async def test_a_gateway_whose_audit_stops_is_named_while_others_go_on(audit, make_presence, clock, wall):
    one, two = make_presence("one"), make_presence("two")
    for presence in (one, two):
        await presence.start()
        await presence._background.stop()
    for _ in range(4):
        forward(clock, wall, EVERY_S)
        await two.say()
    assert await silences(audit) == [("one", 1)]
    forward(clock, wall, 3 * EVERY_S)
    assert await silences(audit) == [("one", 1), ("two", 6)]  # no record says so: the time that has passed does


async def test_records_that_no_gateway_wrote_are_no_silence(audit, wall):
    for _ in range(3):
        await audit.record(SYSTEM, "key.create", "by the command line")
        wall.forward(100 * EVERY_S)
    assert await silences(audit) == []


async def test_what_could_not_be_written_is_written_when_it_can(audit, make_presence):
    audit.anchor_file.mkdir()
    await audit.record(SYSTEM, "test.act", "its anchor cannot be written")
    presence = make_presence("one")
    await presence.start()
    assert len(await audit.records()) == 1
    audit.anchor_file.rmdir()
    await presence.say()
    assert [record.action for record in await audit.records()][1:] == [STARTED]
    await presence.stop()


async def test_a_model_is_changed_only_after_that_was_written(audit):
    changes = ModelChanges(audit)
    call = make_call(principal=make_principal())
    await changes.begin(call, "model.load", "digits")
    await changes.changed(call, "model.load", "digits", result="ok", details={})
    written = [(record.actor, record.action, record.object, record.result) for record in await audit.records()]
    assert written == [("key", "model.load", "digits", "begun"), ("key", "model.load", "digits", "ok")]
