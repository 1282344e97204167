"""``kill -9`` under load: every call that was answered has exactly one record, whatever was cut off."""

import json
import os
import subprocess
import sys

import pytest

KILLS = int(os.environ.get("LEDGER_KILLS", "25"))
"""``LEDGER_KILLS=1000 pytest -rP tests/gateway/ledger/test_crash.py`` is the long run, and prints what it counted."""


def run(folder, *options):
    process = subprocess.run(
        [sys.executable, "-m", "tests.gateway.ledger.crash", "--folder", folder, "--iterations", str(KILLS), *options],
        capture_output=True,
        text=True,
        timeout=60 + 5 * KILLS,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def check(books):
    print(json.dumps(books))
    assert books["kills"] == KILLS
    assert books["acknowledged"] > 10 * KILLS  # there was load
    nothing = ("missing", "wrong", "reserved", "unsettled", "wrong_sums", "acknowledged_twice", "journals_left")
    assert {name: books[name] for name in nothing} == dict.fromkeys(nothing, 0)
    # Beside those acknowledged there are at most the calls in flight at each kill, eight at a time.
    assert books["records"] - books["acknowledged"] == books["unknown"] + books["ended_unacknowledged"]
    assert books["records"] - books["acknowledged"] <= 8 * KILLS


@pytest.mark.slow
@pytest.mark.timeout(120 + 5 * KILLS)
@pytest.mark.parametrize("sync_ms", ["20", "0"])
def test_sqlite(tmp_path, sync_ms):
    check(run(tmp_path, "--sync-ms", sync_ms))


@pytest.mark.slow
@pytest.mark.database
@pytest.mark.timeout(120 + 5 * KILLS)
def test_postgresql(tmp_path, postgresql):
    check(run(tmp_path, "--database", postgresql.create_database()))
