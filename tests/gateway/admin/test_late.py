"""The application that is made when somebody first wants it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gateway.admin.late import Late


class Recorder:
    def __init__(self) -> None:
        self.calls: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append(scope["number"])


async def test_it_is_made_once_and_not_on_the_event_loop() -> None:
    made: list[threading.Thread] = []
    app = Recorder()

    def make() -> Recorder:
        made.append(threading.current_thread())
        return app

    late = Late(make)
    assert not made
    await asyncio.gather(*(late({"number": number}, None, None) for number in range(10)))
    assert sorted(app.calls) == list(range(10))
    assert len(made) == 1
    assert made[0] is not threading.main_thread()


async def test_what_could_not_be_made_is_tried_again() -> None:
    app, tries = Recorder(), iter([True, False])

    def make() -> Recorder:
        if next(tries):
            raise OSError("not now")
        return app

    late = Late(make)
    with pytest.raises(OSError, match="not now"):
        await late({"number": 1}, None, None)
    await late({"number": 2}, None, None)
    assert app.calls == [2]
