"""What a skip is: said on a machine that lacks something, a failure under CI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = {
    "in_the_test": "import pytest\ndef test(): pytest.skip('no such thing here')\n",
    "by_its_mark": "import pytest\n@pytest.mark.skipif(True, reason='no such thing here')\ndef test(): pass\n",
    "in_a_fixture": ("import pytest\n@pytest.fixture\ndef f(): pytest.skip('no such thing here')\ndef test(f): pass\n"),
    "its_module": ("import pytest\npytest.skip('no such thing here', allow_module_level=True)\ndef test(): pass\n"),
}
EXPECTED = "import pytest\n@pytest.mark.xfail\ndef test(): assert False\n"


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest with the hooks of these tests, and no other plugin, on a file for each way to skip."""
    for name, text in (WAYS | {"expected": EXPECTED}).items():
        (folder / f"test_{name}.py").write_text(text)
    (folder / "pytest.ini").touch()
    own = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    own |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-ra", "--continue-on-collection-errors", str(folder)],
        cwd=folder, env=own, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_skip_is_said(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 skipped, 1 xfailed" in done.stdout
    assert all(f"test_{way}.py" in done.stdout for way in WAYS)
    assert "no such thing here" in done.stdout


def test_under_ci_it_fails_and_says_why_and_an_expected_failure_is_none(tmp_path: Path) -> None:
    done = run(tmp_path, CI="true")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 xfailed" in done.stdout
    for way in WAYS:
        assert re.search(rf"^(?:FAILED|ERROR) test_{way}\.py", done.stdout, re.MULTILINE), way
    assert done.stdout.count("no such thing here: under CI no test may skip") >= len(WAYS)
