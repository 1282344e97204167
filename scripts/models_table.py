"""Writes the README's table of models from their recipes: ``python scripts/models_table.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gateway.catalog import Catalog, ModelCard

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def table(catalog: Catalog) -> str:
    """The table as Markdown."""
    rows = ["| model | task | format | architecture | measured |", "|---|---|---|---|---|"]
    for card in catalog:
        recipe = card.recipe
        rows.append(
            f"| `{recipe.name}` | {recipe.task or 'raw tensors'} | {recipe.format} "
            f"| {recipe.architecture} | {_scores(card)} |"
        )
    return "\n".join(rows)


def _scores(card: ModelCard) -> str:
    measured = [
        f"{e.metric} {e.value:g} ({e.dataset}, {e.samples})" for e in card.recipe.evaluations if e.value is not None
    ]
    return ", ".join(measured) or "—"


def main() -> int:
    """Rewrite the README; 1 with ``--check`` if it was out of date."""
    text = README.read_text(encoding="utf-8")
    replacement = f"\\g<1>\n{table(Catalog.load(ROOT / 'model_repository'))}\n\\g<2>"
    new = re.sub(r"(<!-- models: [^>]*-->).*?(<!-- /models -->)", replacement, text, flags=re.DOTALL)
    if "--check" in sys.argv[1:]:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
