import random

import pytest

from gateway.ledger.frames import HEADER, MAX_PAYLOAD, Damage, Frame, scan, seal


def sealed(payload: bytes, kind: int = 1) -> bytes:
    buffer = bytearray(HEADER.size) + payload
    seal(buffer, kind)
    return bytes(buffer)


def payloads(found: list[Frame | Damage]) -> list[bytes]:
    return [bytes(item.payload) for item in found if isinstance(item, Frame)]


TEXTS = [bytes([65 + number]) * (number * 37 % 200) for number in range(20)]
DATA = b"".join(sealed(text) for text in TEXTS)


def test_frames_come_back_in_order_with_kind_and_end():
    found = list(scan(sealed(b"one", 1) + sealed(b"", 2)))
    assert payloads(found) == [b"one", b""]
    assert [frame.kind for frame in found] == [1, 2]
    assert [frame.end for frame in found] == [HEADER.size + 3, 2 * HEADER.size + 3]


@pytest.mark.parametrize("start", [0, HEADER.size])
def test_scan_begins_where_it_is_told(start):
    skipped = 1 if start else 0
    assert payloads(list(scan(DATA, start))) == TEXTS[skipped:]


def test_a_tail_torn_anywhere_loses_only_the_frame_it_tore():
    last = len(sealed(TEXTS[-1]))
    for cut in range(1, last):
        *frames, damage = scan(DATA[:-cut])
        assert payloads(frames) == TEXTS[:-1]
        assert damage == Damage(len(DATA) - last, len(DATA) - cut, torn=True)


def test_zeros_behind_the_last_frame_are_a_torn_tail():
    *frames, damage = scan(DATA + bytes(4096))
    assert payloads(frames) == TEXTS
    assert damage == Damage(len(DATA), len(DATA) + 4096, torn=True)


def test_one_flipped_bit_anywhere_costs_one_frame_and_is_located():
    ends = [frame.end for frame in scan(DATA) if isinstance(frame, Frame)]
    chance = random.Random(5)
    for _ in range(300):
        position = chance.randrange(len(DATA) - len(sealed(TEXTS[-1])))
        damaged = bytearray(DATA)
        damaged[position] ^= 1 << chance.randrange(8)
        hit = next(index for index, end in enumerate(ends) if position < end)
        found = list(scan(bytes(damaged)))
        assert payloads(found) == TEXTS[:hit] + TEXTS[hit + 1 :]
        (damage,) = [item for item in found if isinstance(item, Damage)]
        assert damage == Damage(ends[hit - 1] if hit else 0, ends[hit], torn=False)


def test_a_length_beyond_all_reason_is_damage():
    header = HEADER.pack(b"\xd7tg", 1, MAX_PAYLOAD + 1, 0)
    assert list(scan(header + bytes(64)))[-1].torn
