"""The lines that do outside the dashboard what a page has just done: they work when pasted.

The key stands in them as ``$TIDEGATE_KEY``; the real one never does.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.client import task_path

KEY_VARIABLE = "TIDEGATE_KEY"


@dataclass(slots=True, frozen=True)
class Snippet:
    """One request as a shell command and as a Python program (``huggingface_hub``)."""

    curl: str
    python: str
    note: str = ""


def for_text(
    base_url: str,
    model: str,
    body: Mapping[str, Any],
    *,
    method: str,
    arguments: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> Snippet:
    """A task call with a JSON ``body``; ``method`` is ``InferenceClient``'s, with its arguments."""
    url = base_url + task_path(model, task)
    curl = " \\\n  ".join(
        [f"curl -sS {shlex.quote(url)}", _authorization(), "-H 'Content-Type: application/json'",
         f"--data {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
    )  # fmt: skip
    return Snippet(curl, _python(url, method, [repr(argument) for argument in arguments], options or {}))


def for_image(base_url: str, model: str, path: str, media_type: str, note: str = "") -> Snippet:
    """A picture sent as it is; ``path`` is where the visitor has the file."""
    url = base_url + task_path(model)
    curl = " \\\n  ".join(
        [f"curl -sS {shlex.quote(url)}", _authorization(), f"-H 'Content-Type: {media_type}'",
         f"--data-binary {shlex.quote('@' + path)}"]
    )  # fmt: skip
    return Snippet(curl, _python(url, "image_classification", [repr(path)], {}), note)


def _authorization() -> str:
    return f'-H "Authorization: Bearer ${KEY_VARIABLE}"'


def _python(url: str, method: str, arguments: Sequence[str], options: Mapping[str, Any]) -> str:
    given = [*arguments, *(f"{name}={value!r}" for name, value in options.items())]
    call = f"client.{method}({', '.join(given)})"
    if len(call) > 88:
        call = f"client.{method}(\n    " + ",\n    ".join(given) + ",\n)"
    return (
        "import os\n\n"
        "from huggingface_hub import InferenceClient\n\n"
        f'client = InferenceClient(model={json.dumps(url)}, token=os.environ["{KEY_VARIABLE}"])\n'
        f"print({call})\n"
    )
