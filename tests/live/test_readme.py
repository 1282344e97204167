"""The commands of the README and of the first page are executed as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/01-getting-started.md")


def blocks(language: str) -> list[Any]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)):
            found.append(pytest.param(block, id=f"{page}-{number}"))
    return found


def adapted(block: str, stack: Any) -> str:
    """The block with the running stack's addresses and key in place of the defaults."""
    address = stack.gateway_url.removeprefix("http://")
    return block.replace("127.0.0.1:8080", address).replace(".tidegate/demo.key", str(stack.data_dir / "demo.key"))


@pytest.mark.parametrize("block", [block for block in blocks("(?:bash|)") if "curl" in block.values[0]])
def test_shell_examples_work_when_pasted(stack: Any, block: str) -> None:
    done = subprocess.run(["bash", "-euc", adapted(block, stack)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("{", "[")), done.stdout
    assert '"error"' not in done.stdout


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_work_when_pasted(stack: Any, block: str) -> None:
    done = subprocess.run([sys.executable, "-c", adapted(block, stack)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("target", ["run", "test", "check"])
def test_the_make_targets_of_the_readme_exist(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_printed_curl_line_works(stack: Any) -> None:
    (line,) = re.findall(r"^\s+(curl .*)$", stack.log_file.read_text(), re.MULTILINE)
    done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout
