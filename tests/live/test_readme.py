"""The commands of the README and of the first page are executed as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BUILDING_S
from tests.live.test_up import PORTS, children

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


def test_the_printed_curl_line_works(stack: Any) -> None:
    (line,) = re.findall(r"^\s+(curl .*)$", stack.log_file.read_text(), re.MULTILINE)
    done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout


def cloned(folder: Path, git: str) -> Path:
    """A clean clone, with what its first `make run` would download or build for minutes: the environment, the models.

    The environment is the one that runs the tests, which PYTHONPATH lets import the clone.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: there is nothing to clone")
    clone = folder / "clone"
    subprocess.run([git, "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=120)
    environment = clone / ".venv"
    environment.mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name not in {".run", ".test"}:
            (environment / part.name).symlink_to(part)
    (environment / ".run").touch()  # as if pip had just run
    for card in (ROOT / "model_repository").glob("*/card.json"):
        recipe = shutil.ignore_patterns("model.yaml")
        shutil.copytree(card.parent, clone / "model_repository" / card.parent.name, ignore=recipe, dirs_exist_ok=True)
    return clone


@pytest.mark.slow
@pytest.mark.timeout(BUILDING_S)
def test_a_clean_clone_runs_as_the_readme_says(
    tmp_path: Path, require_program: Callable[[str], str], poll: Callable[..., None]
) -> None:
    clone = cloned(tmp_path, require_program("git"))
    own = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    own |= {f"TIDEGATE_{name}": "0" for name in PORTS} | {"PYTHONPATH": str(clone)}
    screen = tmp_path / "screen"
    with screen.open("wb") as terminal:
        process = subprocess.Popen(
            [require_program("make"), "run", "ARGS=--models sentiment,digits"],
            cwd=clone, env=own, stdout=terminal, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        poll(
            lambda: "Ctrl-C stops everything." in screen.read_text() or process.poll() is not None,
            BUILDING_S - 120, "the end of make run's start",
        )  # fmt: skip
        said = screen.read_text()
        for line in (
            r"gateway +http://127\.0\.0\.1:\d+ ", r"gRPC +127\.0\.0\.1:\d+$", r"dashboard +http://127\.0\.0\.1:\d+$",
            r"metrics +http://127\.0\.0\.1:\d+/metrics$", r"demo key +\.tidegate/demo\.key$",
            r"models +digits, sentiment$",
        ):  # fmt: skip
            assert re.search(rf"^  {line}", said, re.MULTILINE), said
        (curl,) = re.findall(r"^\s+(curl .*)$", said, re.MULTILINE)
        done = subprocess.run(["bash", "-euc", curl], capture_output=True, text=True, timeout=60, cwd=clone)
        assert done.returncode == 0, done.stderr
        assert "positive" in done.stdout
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
            process.wait(120)
    assert "stopped; nothing is left running" in screen.read_text()
    poll(lambda: not children(str(clone)), 10, "the end of every process")
