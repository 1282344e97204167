"""API keys where they do not belong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gateway.access import keyformat
from gateway.access.key import KeySpec, validate
from gateway.dialects.headers import acceptable_request_id
from gateway.errors import Invalid, NotFound
from gateway.redaction import holds_key, redact

KEY = keyformat.generate("k23456789012", test=False).text
SECRET = KEY.split("_")[3]


@pytest.mark.parametrize("around", ["{}", "a {} b", "x{}", "{}y", '{{"key": "{}"}}', "{}{}"])
def test_a_key_anywhere_is_masked_and_its_id_stays(around):
    text = around.format(KEY, KEY)
    assert holds_key(text)
    assert SECRET not in redact(text)
    assert "tg_live_k23456789012_***" in redact(text)


# Named: the key is another in every process, and all workers must collect the same tests.
@pytest.mark.parametrize(
    "text",
    [KEY[:-1], KEY[:40], KEY.replace("live", "test"), KEY + "0"],
    ids=["without its end", "cut short", "of the other kind", "with one too many"],
)
def test_a_key_mistyped_or_cut_short_is_masked_too(text):
    assert text.split("_")[3][:16] not in redact(text)


@pytest.mark.parametrize("text", ["", "tg_live_", "tg_live_k23456789012", "tg_", "a text", "tg_test_x_short"])
def test_what_is_no_key_is_left_alone(text):
    assert not holds_key(text)
    assert redact(text) == text


def test_errors_do_not_repeat_keys():
    error = NotFound(f"no such model {KEY}", param=f"inputs.{KEY}")
    assert SECRET not in f"{error.message} {error.param} {error} {error!r}"


def test_a_key_is_no_request_id_no_label_no_name_of_a_model():
    assert acceptable_request_id("mine") == "mine"
    assert acceptable_request_id(KEY) is None
    for fields in ({"label": f"for {KEY}"}, {"models": (KEY,)}):
        with pytest.raises(Invalid):
            validate(KeySpec(project="web", **fields), 0.0)


def test_log_lines_show_no_key_wherever_it_came_from():
    program = f"""
import logging, structlog
from gateway.telemetry import logs
logs.configure("debug")
structlog.get_logger("a").error("event {KEY}", where=["{KEY}"], **{{"{KEY}": 1}})
try:
    raise ValueError("{KEY}")
except ValueError:
    structlog.get_logger("a").exception("failed")
    logging.getLogger("library").exception("failed with %s", "{KEY}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 3
    assert SECRET not in done.stderr
    assert "ValueError: tg_live_k23456789012_***" in done.stderr
