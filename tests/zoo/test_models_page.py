"""docs/03-models.md: the table of evidence is made from the recipes, and its figures hold their tolerances."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "03-models.md"


def check(page: Path) -> int:
    """Exit code of the script."""
    main = runpy.run_path(str(ROOT / "scripts" / "models_page.py"))["main"]
    return int(main(["--check", "--page", str(page)]))


def test_the_page_is_what_the_recipes_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(PAGE) == 0, f"run scripts/models_page.py: {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("found", "put", "said"),
    [
        ("| accuracy 0.", "| accuracy 1.", "are not those of the recipes"),
        ("| 0.0005 |", "| 0.0006 |", "are not those of the recipes"),
        ("| `digits` |", "| `numbers` |", "the page has numbers"),
        ("| cosine 0.9", "| cosine 0.8", "embeddings-int8: a parity of cosine 0.8"),
        ("<!-- evidence", "<!-- none", "the page has no models"),
    ],
)
def test_a_page_that_says_something_else_is_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], found: str, put: str, said: str
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert found in text
    page = tmp_path / "page.md"
    page.write_text(text.replace(found, put), encoding="utf-8")
    assert check(page) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
