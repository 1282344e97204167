"""Documentation that cannot rot: settings, the table of models, links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_the_settings_page_is_made_from_the_settings() -> None:
    done = run_script("settings_page.py")
    assert done.returncode == 0, done.stderr
    assert (ROOT / "docs" / "02-settings.md").read_text() == done.stdout, "run scripts/settings_page.py"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith(".")


def test_the_table_of_models_is_made_from_the_recipes() -> None:
    assert run_script("models_table.py", "--check").returncode == 0, "run scripts/models_table.py"


def test_the_benchmarks_are_those_of_the_reports() -> None:
    done = run_script("benchmarks_page.py", "--check")
    assert done.returncode == 0, f"run scripts/benchmarks_page.py {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_are_reachable_from_the_overview() -> None:
    overview = (ROOT / "docs" / "00-overview.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "00-overview.md" or page.name in overview
