from __future__ import annotations

import asyncio
import json

import pytest

from gateway.access.throttle import Refusals, Throttle, subnet


def test_an_address_waits_after_its_burst_and_is_forgiven():
    throttle = Throttle(burst=3, per_second=0.5)
    for _ in range(3):
        assert throttle.wait("192.0.2.1", 0.0) == 0
        throttle.refuse("192.0.2.1", 0.0)
    assert throttle.wait("192.0.2.1", 0.0) == 2.0
    assert throttle.wait("192.0.2.2", 0.0) == 0
    assert throttle.wait("192.0.2.1", 1.0) == 1.0
    assert throttle.wait("192.0.2.1", 2.0) == 0


def test_an_ipv6_network_counts_as_one_address():
    throttle = Throttle(burst=1, per_second=1)
    throttle.refuse("2001:db8::1", 0.0)
    assert throttle.wait("2001:db8::ffff:2", 0.0) > 0
    assert throttle.wait("2001:db8:0:1::1", 0.0) == 0


def test_memory_is_bounded():
    throttle = Throttle(size=100)
    for number in range(1000):
        throttle.refuse(f"192.0.2.{number}", 0.0)
        throttle.probe(f"192.0.2.{number}", 0.0)
    assert len(throttle._buckets) == len(throttle._probes) == 100


def test_a_few_probes_a_second_pass():
    throttle = Throttle(probes_per_second=2)
    assert [throttle.probe("a", 0.0) for _ in range(3)] == [True, True, False]
    assert throttle.probe("a", 0.5)


@pytest.mark.parametrize(
    ("address", "counted"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"), ("::ffff:192.0.2.1", "192.0.2.1"),
     ("fe80::1%eth0", "fe80::/64"), ("not:an:address", "unknown"), ("", "")],
)  # fmt: skip
def test_what_an_address_counts_as(address, counted):
    assert subnet(address) == counted


async def test_refusals_are_counted_and_written_once_an_interval(audit):
    refusals = Refusals(audit, interval_s=60)
    for _ in range(1000):
        refusals.note("192.0.2.1", "invalid")
    refusals.note("192.0.2.2", "expired")
    await refusals.flush(0.0)
    refusals.note("192.0.2.1", "invalid")
    await refusals.flush(1.0)
    records = await audit.records()
    assert [(record.action, record.object, record.result, json.loads(record.details)) for record in records] == [
        ("auth.refused", "192.0.2.1", "denied", {"invalid": 1000}),
        ("auth.refused", "192.0.2.2", "denied", {"expired": 1}),
    ]
    await refusals.flush(61.0)
    assert json.loads((await audit.records())[-1].details) == {"invalid": 1}


async def test_many_addresses_fill_neither_memory_nor_disk(audit):
    refusals = Refusals(audit, size=10)
    for number in range(1000):
        refusals.note(f"192.0.2.{number}", f"reason {number}")
    await refusals.flush(0.0)
    records = await audit.records()
    assert len(records) == 11
    others = json.loads(records[-1].details)
    assert records[-1].object == "others"
    assert sum(others.values()) == 990
    assert len(others) <= 33


async def test_two_flushes_at_once_write_everything_once(audit):
    refusals = Refusals(audit, interval_s=60)
    refusals.note("192.0.2.1", "unknown")
    refusals.note("192.0.2.1", "unknown")
    await asyncio.gather(refusals.flush(1.0, all_=True), refusals.flush(1.0, all_=True))
    assert [json.loads(record.details) for record in await audit.records()] == [{"unknown": 2}]
