"""Writes the table of evidence in docs/03-models.md: ``python scripts/models_page.py``.

Scores, floors and tolerances come from the recipes; parity, golden answers and size from the cards that the last build
left (``tidegate models list --json`` prints the same). ``--check`` needs no build: it compares what the recipes say and
holds the page's own measured figures to the tolerances. Another processor measures another last digit.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.catalog import Catalog, Evaluation, ModelCard

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "03-models.md"
MARKED = re.compile(r"(<!-- evidence: [^>]*-->\n).*?(<!-- /evidence -->)", re.DOTALL)
COLUMNS = ("model", "score", "floor", "data set", "parity allowed", "measured", "golden", "size")


class OutdatedError(Exception):
    """The page is not what the recipes say; the message says where."""


@dataclass(frozen=True)
class Build:
    """What a build measured, as the page shows it."""

    parity: str
    golden: str
    size: str


def of_card(card: ModelCard) -> Build:
    """From ``card.json``. Raises :class:`OutdatedError` for a model that is not built."""
    evidence = card.evidence
    if evidence is None:
        raise OutdatedError(f"{card.name} is not built; `tidegate models build {card.name}` builds it")
    if card.recipe.parity.cosine is not None:
        parity = f"cosine {evidence.parity_min_cosine:.3f}"
    else:
        parity = f"{evidence.parity_max_abs_error:.1e}" if evidence.parity_max_abs_error else "0"
    golden = f"{evidence.golden_passed} of {len(card.recipe.golden)}" if card.recipe.golden else "—"
    size = evidence.model_bytes
    return Build(parity, golden, f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} B")


def of_page(text: str) -> dict[str, Build]:
    """From the page's own table."""
    found = MARKED.search(text)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (found[0] if found else "").splitlines()]
    return {row[0].strip("`"): Build(*row[5:]) for row in rows if len(row) == len(COLUMNS) and row[0].startswith("`")}


def table(catalog: Catalog, builds: Mapping[str, Build]) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|---|---|---|--:|"]
    for card in catalog:
        scores = card.recipe.evaluations
        build = builds[card.name]
        cells = (
            f"`{card.name}`",
            ", ".join(f"{item.metric} {_number(item)}" for item in scores) or "—",
            ", ".join(f"{item.floor:g}" for item in scores) or "—",
            ", ".join(dict.fromkeys(_data(item) for item in scores)) or "—",
            _allowed(card),
            build.parity,
            build.golden,
            build.size,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(item: Evaluation) -> str:
    return "not measured" if item.value is None else f"{item.value:g}"


def _data(item: Evaluation) -> str:
    samples = f"{item.samples:,}" if item.samples else ""
    return f"{item.dataset} ({item.split}" + (")" if samples in item.split else f", {samples} samples)")


def _allowed(card: ModelCard) -> str:
    parity = card.recipe.parity
    return f"{parity.atol:g}" if parity.cosine is None else f"cosine {parity.cosine:g}"


def check(text: str, catalog: Catalog) -> None:
    """Raise :class:`OutdatedError` where the page and the recipes differ, or a figure does not hold its tolerance."""
    builds = of_page(text)
    names = [card.name for card in catalog]
    if list(builds) != names:
        raise OutdatedError(f"the page has {', '.join(builds) or 'no models'}, not {', '.join(names)}")
    for card in catalog:
        parity, measured = card.recipe.parity, float(builds[card.name].parity.removeprefix("cosine "))
        if measured > parity.atol if parity.cosine is None else measured < parity.cosine:
            raise OutdatedError(f"{card.name}: a parity of {builds[card.name].parity} is not within {_allowed(card)}")
    if rewritten(text, catalog, builds) != text:
        raise OutdatedError("scores, floors, data sets or tolerances are not those of the recipes")


def rewritten(text: str, catalog: Catalog, builds: Mapping[str, Build]) -> str:
    """The page with the table made anew."""
    new = table(catalog, builds)
    return MARKED.sub(lambda found: f"{found[1]}{new}{found[2]}", text)


def main(arguments: Sequence[str]) -> int:
    """Rewrite the page; with ``--check`` only compare it, and say in one line what is wrong."""
    parser = argparse.ArgumentParser(description="The table of evidence in docs/03-models.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default: docs/03-models.md)")
    options = parser.parse_args(arguments)
    text = options.page.read_text(encoding="utf-8")
    catalog = Catalog.load(ROOT / "model_repository")
    try:
        if options.check:
            check(text, catalog)
        else:
            builds = {card.name: of_card(card) for card in catalog}
            options.page.write_text(rewritten(text, catalog, builds), encoding="utf-8")
    except OutdatedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
