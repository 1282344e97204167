"""JSON that is right and far too much of it: what it takes to read it is bounded, in memory and in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.memory import peak
from tests.live.hostile.payload import INFER, Sender, sender
from tests.live.hostile.second import Second

pytestmark = pytest.mark.live

SIZE = 60 * 2**20
LIMIT_MIB = 64
PATHS = (INFER, "/v2/models/identity/generate")


@pytest.fixture
def send(second: Second) -> Iterator[Sender]:
    with sender(second.gateway) as opened:
        yield opened


def filled(item: bytes) -> bytes:
    """A body of ``SIZE`` whose only member is a list of ``item``."""
    return b'{"inputs":[' + (item * (SIZE // len(item)))[:-1] + b"]}"


TOO_MANY = {
    "lists": lambda: filled(b"[],"),
    "objects": lambda: filled(b"{},"),
    "nested lists": lambda: filled(b"[[[[[[]]]]]],"),
    "objects with a member": lambda: filled(b'{"a":1},'),
    "members": lambda: b"{" + b",".join(b'"%07d":1' % number for number in range(SIZE // 12)) + b"}",
    "texts that look like members": lambda: filled(b'"\\":",'),
}


@pytest.mark.parametrize("make", TOO_MANY.values(), ids=TOO_MANY.keys())
def test_containers_without_end_are_413(
    fake: FakeTriton, second: Second, send: Sender, make: Callable[[], bytes]
) -> None:
    """Three bytes each, 64 in memory: as much as the body itself is kept, not thirty times that."""
    body = make()
    with second.invariants.case(growth_mib=160) as case, peak(second.process.pid) as seen:
        before = second.invariants.metrics()["process_cpu_seconds_total"]
        for path in PATHS:
            case.refused(send.post(path, body), 413, "oip")
        spent = second.invariants.metrics()["process_cpu_seconds_total"] - before
    assert seen.growth < 4 * LIMIT_MIB, f"{seen.growth:.0f} MiB"
    assert spent < 4.0


NUMBERS = {"ones": b"1,", "halves": b"0.5,", "texts": b'"ab",', "great numbers": b"123456789012345678901234567890,"}


@pytest.mark.slow
@pytest.mark.parametrize("item", NUMBERS.values(), ids=NUMBERS.keys())
def test_values_without_end_are_refused_for_what_they_are(
    fake: FakeTriton, second: Second, send: Sender, item: bytes
) -> None:
    """A tensor may be as large as a body: it is read, found wrong, and takes less than twenty times its size."""
    tensor = b'{"inputs":[{"name":"INPUT","shape":[1,64],"datatype":"FP32","data":['
    body = tensor + (item * ((SIZE - 100) // len(item)))[:-1] + b"]}]}"
    with second.invariants.case(growth_mib=256) as case, peak(second.process.pid) as seen:
        case.refused(send.post(INFER, body), 422, "oip")
    assert seen.growth < 20 * LIMIT_MIB, f"{seen.growth:.0f} MiB"


def test_as_many_as_are_taken(fake: FakeTriton, second: Second, send: Sender) -> None:
    """Within the bound it is looked at, and refused for its form."""
    body = b'{"inputs":[' + b"[]," * 900_000 + b"[]]}"
    with second.invariants.case(growth_mib=160) as case:
        case.refused(send.post(INFER, body), 422, "oip")
