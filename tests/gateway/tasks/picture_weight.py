"""Run by test_image.py in a process of its own: the memory that decoding pictures takes, in MiB.

Arguments: a model repository, a model, how many threads, how many pictures a call, the picture's file.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.catalog import Catalog
from gateway.settings import Settings
from gateway.tasks import create_task


def status(name: str) -> float:
    """A size in ``/proc/self/status``, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def main(repository: str, model: str, threads: str, pictures: str, path: str) -> None:
    card = Catalog.load(Path(repository)).get(model)
    assert card is not None
    task = create_task(card, "image-classification", Settings())
    data = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark is where it is now
    before = status("VmRSS")
    with ThreadPoolExecutor(int(threads)) as executor:
        plans = [executor.submit(task.plan, [data] * int(pictures), {}) for _ in range(int(threads))]
        assert {plan.result().units.rows for plan in plans} == {int(pictures)}
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
