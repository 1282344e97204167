from __future__ import annotations

import re
import string

import pytest

from gateway.access.keyformat import ALPHABET, PATTERN, generate, generate_id, parse

KEY = "tg_live_0123456789AB_abcdefghijklmnopqrstuvwxyz012345_"


def fresh():
    return generate(generate_id(), test=False).text


def test_a_key_is_read_back():
    presented = generate("0123456789AB", test=True)
    assert presented.text.startswith("tg_test_0123456789AB_")
    assert parse(presented.text) == presented
    assert parse(fresh()).test is False


def test_every_single_mistyped_character_is_found():
    for text in (fresh(), generate("0" * 12, test=True).text):
        for place, right in enumerate(text):
            for wrong in string.printable:
                if wrong != right:
                    assert parse(text[:place] + wrong + text[place + 1 :]) is None, (place, wrong)


def test_neighbours_swapped_are_found():
    text = fresh()
    for place in range(len(text) - 1):
        swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        assert swapped == text or parse(swapped) is None


@pytest.mark.parametrize(
    "text",
    ["", "tg_live_", KEY, KEY + "000000", "x" * 64, "' OR 1=1--", "tg_live_" + "\0" * 3, "é" * 60, "a" * 60,
     "tg_live_0123456789AB"],
    ids=repr,
)  # fmt: skip
def test_what_is_no_key_is_refused(text):
    assert parse(text) is None


def test_a_key_with_something_around_it_is_refused():
    text = fresh()
    for wrong in (text + "\n", " " + text, text[:-1], text + "0", text.replace("tg_", "TG_"), text.lower()):
        assert parse(wrong) is None


def test_secrets_differ_and_have_at_least_160_bits():
    secrets = {fresh().split("_")[3] for _ in range(200)}
    assert len(secrets) == 200
    assert len(ALPHABET) ** 32 >= 2**160
    assert set("".join(secrets)) == set(ALPHABET)


def test_the_published_pattern_finds_keys_in_text():
    text = fresh()
    assert re.findall(PATTERN, f"export KEY={text}; # mine") == [text]


def test_a_presented_key_does_not_print_its_secret():
    presented = generate("0123456789AB", test=False)
    assert presented.text.split("_")[3] not in f"{presented!r} {presented}"
