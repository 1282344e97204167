"""What every test may use. Fixtures of one part stand in that part's own conftest."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from tests import once
from tests.turns import Turns

ROOT = Path(__file__).parent
BUILDING_S = 900
"""Seconds for a test that may be the first to need the stack: on a clean clone it builds the models before."""
_TURNS = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    """All workers of a run take their turns in one folder; what a process need do once, it does once."""
    once.install()
    config.stash[_TURNS] = Turns(config.rootpath / ".pytest_cache" / "turns")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test with the marker ``alone`` has the machine to itself: no other worker runs one meanwhile."""
    turns = item.config.stash[_TURNS]
    with turns.alone() if item.get_closest_marker("alone") else turns.together():
        return (yield)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; tests that share servers stay on one worker (``--dist loadgroup``)."""
    for item in items:
        on_stack = "stack" in getattr(item, "fixturenames", ())
        if item.get_closest_marker("live"):
            item.add_marker(pytest.mark.xdist_group("stack" if on_stack else str(item.path.parent.relative_to(ROOT))))
        if on_stack and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(BUILDING_S))
    items.sort(key=lambda item: (bool(item.get_closest_marker("live")), bool(item.get_closest_marker("slow"))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a test that skips has failed."""
    return fail_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips as a whole."""
    return fail_skipped((yield))


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def fail_skipped(report: Report) -> Report:
    """``report``, a failure under CI if it was a skip: what CI does not test, nobody does."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{reason}: under CI no test may skip"
    return report


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """Path of a system program; without it the test skips and says why."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed (scripts/install-debian.sh installs what the tests need)")
        return path

    return find


def until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "the condition") -> None:
    """Poll ``condition`` until it is true; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def poll() -> Callable[..., None]:
    """:func:`until`, for tests."""
    return until
