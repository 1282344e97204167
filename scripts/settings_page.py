"""Prints docs/02-settings.md from the settings themselves.

``python scripts/settings_page.py > docs/02-settings.md``
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from gateway.settings import PREFIX, Settings

SOURCE = Path(__file__).parents[1] / "gateway" / "settings.py"

HEAD = """# Settings

Every setting is an environment variable. Unknown `TIDEGATE_*` names are refused, so that a typing error
cannot pass as a default. The command's options set the same things and win over the environment.

This page is made from `gateway/settings.py` by `python scripts/settings_page.py`; a test compares them.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    sections = _sections()
    for name, field in Settings.model_fields.items():
        if name in sections:
            lines += ["", f"## {sections[name]}", "", "| variable | default | what it does |", "|---|---|---|"]
        lines.append(f"| `{PREFIX}{name.upper()}` | {_default(field.default)} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _sections() -> dict[str, str]:
    """First field of each section, from the comments that divide the class."""
    found: dict[str, str] = {}
    title = None
    for line in SOURCE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"    # --- (.+)", line):
            title = match[1].capitalize()
        elif title and (match := re.match(r"    (\w+): .*Field\(", line)):
            found[match[1]], title = title, None
    return found


def _default(value: Any) -> str:
    if value is None or value is PydanticUndefined or value == "":
        return "—"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print(page(), end="")
