"""The processes of a model's instances, as the operating system sees them."""

from __future__ import annotations

import psutil

from embedded.launcher import EmbeddedTriton


def stubs(triton: EmbeddedTriton, name: str) -> list[psutil.Process]:
    """The process of each instance of version 1 of ``name``."""
    assert triton.pid is not None
    return [
        child
        for child in psutil.Process(triton.pid).children()
        if any(f"/{name}/1/" in part for part in child.cmdline())
    ]


def thread_counts(triton: EmbeddedTriton, name: str) -> list[int]:
    """The threads of each instance: those of an operator and others, the same number for every model of a backend."""
    return [stub.num_threads() for stub in stubs(triton, name)]
