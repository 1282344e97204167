"""Writes the README's table of models: ``python scripts/models_table.py``.

Scores come from the recipes, speeds from the report of ``tidegate bench run models``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from gateway.catalog import Catalog, ModelCard

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPORT = ROOT / "benchmarks" / "results" / "models" / "report.json"


def table(catalog: Catalog, report: dict[str, Any]) -> str:
    """The table as Markdown; ``report`` is the suite's ``report.json``."""
    rows = [
        "| model | task | format | architecture | measured | one user, p50 | 16 users |",
        "|---|---|---|---|---|--:|--:|",
    ]
    for card in catalog:
        recipe = card.recipe
        rows.append(
            f"| `{recipe.name}` | {recipe.task or 'raw tensors'} | {recipe.format} "
            f"| {recipe.architecture} | {_scores(card)} | {_latency(report, card.name)} | {_rate(report, card.name)} |"
        )
    return "\n".join(rows)


def _latency(report: dict[str, Any], model: str) -> str:
    found = _measured(report, model, users=1)
    return f"{found['latency']['percentiles']['p50']:.2g} ms" if found else "—"


def _rate(report: dict[str, Any], model: str) -> str:
    found = _measured(report, model, users=16)
    return f"{_rounded(found['throughput']):,.0f} req/s" if found else "—"


def _rounded(value: float) -> float:
    """To two significant digits: more would pretend that a shared machine repeats them."""
    return float(f"{value:.2g}")


def _measured(report: dict[str, Any], model: str, users: int) -> dict[str, Any] | None:
    """The valid run of ``model`` with so many users, if there is one."""
    for found in report["measurements"]:
        if found["workload"] == model and found["load"]["users"] == users and found["verdict"] == "VALID":
            return dict(found)
    return None


def _scores(card: ModelCard) -> str:
    measured = [
        f"{e.metric} {e.value:g} ({e.dataset}, {e.samples})" for e in card.recipe.evaluations if e.value is not None
    ]
    return ", ".join(measured) or "—"


def main() -> int:
    """Rewrite the README; 1 with ``--check`` if it was out of date."""
    text, report = README.read_text(encoding="utf-8"), json.loads(REPORT.read_text())
    replacement = f"\\g<1>\n{table(Catalog.load(ROOT / 'model_repository'), report)}\n\\g<2>"
    new = re.sub(r"(<!-- models: [^>]*-->).*?(<!-- /models -->)", replacement, text, flags=re.DOTALL)
    if "--check" in sys.argv[1:]:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
