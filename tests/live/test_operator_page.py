"""The operator's page, pasted into a shell from top to bottom, against a gateway of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.access import keyformat
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD
from tests.live.hostile.second import Second, second_gateway

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "05-operator.md").read_text()
BLOCKS = [
    block
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    if not language and "tidegate" in block.lower()
]
SESSION = [block for block in BLOCKS if "tidegate serve" not in block and not block.startswith("tg_")]


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Second]:
    triton = FakeTriton()
    try:
        with second_gateway(tmp_path / "data", triton.address) as running:
            yield running
    finally:
        triton.close()


@pytest.fixture
def shell(second: Second, tmp_path: Path) -> dict[str, str]:
    """The environment of an operator whose folder has ``data`` and who has the command on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "tidegate"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tidegate "$@"\n')
    command.chmod(0o700)
    return second.environment | {"PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "200"}


def test_the_page_is_a_session(second: Second, shell: dict[str, str], tmp_path: Path) -> None:
    url = second.gateway.url
    used = httpx.post(f"{url}/v2/models/identity/infer", json=GOOD, headers=second.gateway.headers, timeout=30)
    assert used.status_code == 200
    folder = tmp_path / "operator"
    folder.mkdir()
    script = "\n".join(f"echo '=== {number}'\n{block}" for number, block in enumerate(SESSION))
    script = script.replace("http://127.0.0.1:8080", url)
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\nshopt -s expand_aliases\n{script}"],
        cwd=folder, env=shell, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    assert len(SESSION) >= 7
    assert said.count("=== ") == len(SESSION)
    # What each part of the day left behind.
    files = {path.name for path in folder.iterdir()}
    assert {"admin.key", "web.key", "web-new.key", "web.csv"} <= files
    assert any(name.startswith("audit-") for name in files)
    admin = {"authorization": f"Bearer {(folder / 'admin.key').read_text().strip()}"}
    key_id = (folder / "web.key").read_text().split("_")[2]
    key = httpx.get(f"{url}/admin/keys/{key_id}", headers=admin, timeout=30).json()
    assert (key["label"], key["state"], sorted(key["models"])) == ("shop", "revoked", ["qa", "sentiment"])
    assert len(key["secrets"]) == 2
    assert httpx.get(f"{url}/admin/tiers", headers=admin, timeout=30).json()["tiers"]["default"]["burst"] == 100
    assert '"limit_usd":"250"' in said.replace(" ", "")
    assert "whole: " in said
    assert "The sums agree" in said
    assert not any(path.read_text().strip().split("_")[3] in said for path in folder.glob("*.key"))
    exported = [json.loads(line) for line in next(folder.glob("audit-*")).read_text().splitlines()]
    actions = [record["action"] for record in exported]
    for action in ("key.create", "key.update", "key.rotate", "key.revoke", "tier.set", "limit.set", "budget.set"):
        assert action in actions


def test_the_pattern_for_scanners_is_the_real_one() -> None:
    assert f"\n{keyformat.PATTERN}\n" in PAGE
