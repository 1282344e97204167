"""The curl and Python lines: pasted into a shell, they do what the page did."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dashboard import snippets
from tests.dashboard.contract_server import KEY, ContractGateway

ROOT = Path(__file__).parents[2]
AWKWARD = 'It\'s "fine" & cheap: $HOME `x` \\ 好\nnew line'


def run(command: list[str]) -> str:
    environment = {"PATH": os.environ["PATH"], "TIDEGATE_KEY": KEY, "HOME": "/nonexistent"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cases(url: str) -> dict[str, tuple[snippets.Snippet, str]]:
    return {
        "text": (
            snippets.for_text(
                url, "sentiment", {"inputs": AWKWARD, "parameters": {"top_k": 2}},
                method="text_classification", arguments=[AWKWARD], options={"top_k": 2},
            ),
            "positive",
        ),
        "image": (snippets.for_image(url, "imagenet", "dashboard/samples/cat.jpg", "image/jpeg"), "tabby"),
        "question": (
            snippets.for_text(
                url, "qa", {"inputs": {"question": "When?", "context": "On May 27, 1937."}, "parameters": {}},
                method="question_answering", options={"question": "When?", "context": "On May 27, 1937."},
            ),
            "May 27, 1937",
        ),
        "zero-shot": (
            snippets.for_text(
                url, "embeddings", {"inputs": "x", "parameters": {"candidate_labels": ["sea", "land"]}},
                method="zero_shot_classification", arguments=["x"], options={"candidate_labels": ["sea", "land"]},
                task="zero-shot-classification",
            ),
            "sea",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", ["text", "image", "question", "zero-shot"])
def test_curl_lines_work_when_pasted(
    case: str, gateway: ContractGateway, require_program: Callable[[str], str]
) -> None:
    require_program("curl")
    snippet, expected = cases(gateway.url)[case]
    assert KEY not in snippet.curl
    assert expected in run(["bash", "-euc", snippet.curl])
    if case == "text":
        assert gateway.requests[0].json()["inputs"] == AWKWARD
    if case == "image":
        assert gateway.requests[0].body == (ROOT / "dashboard/samples/cat.jpg").read_bytes()


@pytest.mark.parametrize("case", ["text", "image", "question", "zero-shot"])
def test_python_lines_work_when_pasted(case: str, gateway: ContractGateway) -> None:
    snippet, expected = cases(gateway.url)[case]
    assert KEY not in snippet.python
    assert expected in run([sys.executable, "-c", snippet.python])
    if case == "text":
        assert gateway.requests[0].json()["inputs"] == AWKWARD


def test_a_long_call_is_wrapped() -> None:
    snippet = snippets.for_text(
        "http://h", "m", {}, method="question_answering", options={"question": "q" * 60, "context": "c" * 60}
    )
    assert max(len(line) for line in snippet.python.splitlines()) <= 88
    compile(snippet.python, "snippet", "exec")
