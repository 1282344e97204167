"""What a skip is: said on a machine that lacks something, a failure under CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WAYS = {
    "in the test": "import pytest\ndef test(): pytest.skip('no such thing here')\n",
    "by its mark": "import pytest\n@pytest.mark.skipif(True, reason='no such thing here')\ndef test(): pass\n",
    "in a fixture": ("import pytest\n@pytest.fixture\ndef f(): pytest.skip('no such thing here')\ndef test(f): pass\n"),
    "its module": ("import pytest\npytest.skip('no such thing here', allow_module_level=True)\ndef test(): pass\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_under_ci_a_skip_fails_and_says_why(tmp_path: Path, way: str) -> None:
    (tmp_path / "test_it.py").write_text(WAYS[way])
    (tmp_path / "pytest.ini").touch()
    own = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    for ci, status in (({}, {0, 5}), ({"CI": "true"}, {1, 2})):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-rs", str(tmp_path)],
            cwd=tmp_path, env={**own, **ci, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode in status, done.stdout + done.stderr
        assert "no such thing here" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.xfail\ndef test(): assert False\n")
    (tmp_path / "pytest.ini").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "CI": "true", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
