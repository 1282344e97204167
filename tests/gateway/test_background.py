"""Loops beside the calls: an error does not end them, stopping does."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway import background
from gateway.background import Background


async def test_a_step_that_breaks_is_logged_and_the_next_one_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_AFTER_ERROR_S", 0.0)
    done = asyncio.Event()
    steps: list[int] = []

    async def step() -> None:
        steps.append(len(steps))
        if len(steps) < 3:
            raise KeyError("a defect")
        done.set()

    loops = Background()
    with capture_logs() as logs:
        loops.every(0.001, step, "counting")
        await asyncio.wait_for(done.wait(), 10)
        await loops.stop()
    assert [entry["loop"] for entry in logs if entry["event"] == "background.step_failed"] == ["counting"] * 2


async def test_stopping_ends_all_of_them_in_the_middle_of_a_step() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def other() -> None:
        counts.append(1)

    counts: list[int] = []
    loops = Background()
    loops.every(0.0, step, "endless", jitter=0.1)
    loops.every(0.0, other, "quick")
    await asyncio.wait_for(begun.wait(), 10)
    await loops.stop()
    assert ended.is_set()
    counted = len(counts)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(counts) == counted
    await loops.stop()  # a second time there is nothing to do
