"""How libtorch is to run a model: its threads, without gradients, and with or without the JIT's optimisations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from embedded.backends.common.config import ModelSpec, default_intra_op_threads

Mode = Callable[[], AbstractContextManager[Any]]
"""Entered around every call of ``forward``."""


def set_threads(spec: ModelSpec) -> None:
    """Thread counts of this process, which serves one instance of one model."""
    torch.set_num_threads(spec.integer("INTRA_OP_THREAD_COUNT", default_intra_op_threads(share=2 * spec.instances)))
    with contextlib.suppress(RuntimeError):  # only the first call in a process is allowed
        torch.set_num_interop_threads(spec.integer("INTER_OP_THREAD_COUNT", 1))


def grad_mode(spec: ModelSpec) -> Mode:
    """The inference mode, or with ``INFERENCE_MODE`` false only no gradients."""
    return torch.inference_mode if spec.flag("INFERENCE_MODE", default=True) else torch.no_grad


def execution_mode(spec: ModelSpec) -> Mode:
    """The JIT's optimisations, unless ``DISABLE_OPTIMIZED_EXECUTION`` is true."""
    if spec.flag("DISABLE_OPTIMIZED_EXECUTION", default=False):
        return lambda: torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return contextlib.nullcontext
