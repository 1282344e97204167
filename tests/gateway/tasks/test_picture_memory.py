"""Pictures wait for each other where together they would take too much."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.tasks.picture_memory import PictureMemory

Poll = Callable[..., None]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


class Holder:
    """Holds memory from when it gets it until it is told to let go."""

    def __init__(self, memory: PictureMemory, size: int, threads: ThreadPoolExecutor) -> None:
        self.has, self._let_go = threading.Event(), threading.Event()
        self._done = threads.submit(self._hold, memory, size)

    def _hold(self, memory: PictureMemory, size: int) -> None:
        with memory.hold(size):
            self.has.set()
            assert self._let_go.wait(60)

    def let_go(self) -> None:
        self._let_go.set()
        self._done.result(60)


def test_what_does_not_fit_waits(threads: ThreadPoolExecutor, poll: Poll) -> None:
    memory = PictureMemory(100)
    one, two = Holder(memory, 60, threads), Holder(memory, 40, threads)
    poll(lambda: one.has.is_set() and two.has.is_set())
    three = Holder(memory, 50, threads)
    two.let_go()
    assert not three.has.is_set()
    one.let_go()
    assert three.has.wait(60)
    three.let_go()


def test_what_is_larger_than_everything_goes_alone(threads: ThreadPoolExecutor) -> None:
    memory = PictureMemory(100)
    small = Holder(memory, 1, threads)
    assert small.has.wait(60)
    large = Holder(memory, 1_000, threads)
    assert not large.has.is_set()
    small.let_go()
    assert large.has.wait(60)
    late = Holder(memory, 1, threads)
    assert not late.has.is_set()
    large.let_go()
    assert late.has.wait(60)
    late.let_go()


def test_the_large_one_that_waits_is_not_overtaken(threads: ThreadPoolExecutor, poll: Poll) -> None:
    memory = PictureMemory(100)
    first = Holder(memory, 50, threads)
    assert first.has.wait(60)
    large = Holder(memory, 100, threads)
    poll(memory._first.locked)
    small = Holder(memory, 10, threads)  # would fit now
    first.let_go()
    assert large.has.wait(60)
    assert not small.has.is_set()
    large.let_go()
    assert small.has.wait(60)
    small.let_go()


def test_it_is_given_back_whatever_happens() -> None:
    memory = PictureMemory(100)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), memory.hold(100):
            raise ZeroDivisionError
    with memory.hold(100):
        pass
