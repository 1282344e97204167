"""Every command of the README and of the first page is one that there is, with the options it has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.peers.__main__ import _parser
from tidegate.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/01-getting-started.md")
ELSEWHERE = {"curl": "tests/live/test_readme.py", "docker": "tests/deploy/test_compose.py"}
"""What is run by other tests."""


def commands() -> list[str]:
    """Lines of the pages' shell blocks, and what stands in ``code`` and begins as a command does."""
    found: list[str] = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if language in {"", "bash"} and "│" not in block:  # which is a drawing
                found += block.replace("\\\n", " ").splitlines()
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        found += re.findall(r"`((?:tidegate|make|python|cp|docker) [^`]+)`", " ".join(prose.split()))
    return sorted({line.strip() for line in found if line.strip()})


def tidegate(*words: str) -> None:
    """Options are read before help is shown: one that there is not fails."""
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.stderr


def make(*words: str) -> None:
    program = shutil.which("make")
    assert program is not None
    done = subprocess.run([program, "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    options = [word.partition("=") for word in words]
    known = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"$({name})" in known for name, equals, _ in options if equals)
    for name, _, value in options:
        if name == "ARGS":
            tidegate("up", *shlex.split(value))


def python(*words: str) -> None:
    if words[:2] == ("-m", "benchmarks.peers"):
        _parser().parse_args(words[2:])
    else:
        (script,) = words
        assert (ROOT / script).is_file()


def cp(source: str, _target: str) -> None:
    assert (ROOT / source).is_file()


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_one(line: str) -> None:
    program, *words = shlex.split(re.sub(r"<[^>]*>", "anything", line))
    if program not in ELSEWHERE:
        {"tidegate": tidegate, "make": make, "python": python, "cp": cp}[program](*words)


def test_a_renamed_option_is_found() -> None:
    with pytest.raises(AssertionError):
        tidegate("up", "--prot", "9000")
    with pytest.raises(AssertionError):
        make("run", "PYTON=python3.11")
