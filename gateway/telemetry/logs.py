"""Structured logs: one JSON object a line, without payloads and without secrets."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

import structlog

from gateway.redaction import redact

_SECRET_NAMES = frozenset({"authorization", "key", "api_key", "credential", "secret", "password", "pepper", "token"})


class Lines:
    """Where finished lines go: a file descriptor, one write for a line.

    A line that cannot be written (its disk is full, its reader gone) is counted and dropped: what is logged is often
    the failure of that very disk, and whoever logs it has something to put right. Nothing is kept back, so nothing
    is left over at exit. Serves as structlog's logger factory and as a stream of :mod:`logging`.
    """

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        """Lines that were not written, or not to their end."""
        self._descriptor = descriptor
        self._torn = False

    def write(self, text: str) -> int:
        """Write lines, or count them as lost."""
        data = text.encode("utf-8", "backslashreplace")
        if self._torn:  # the end of a line that was cut off, so that this one can be read
            data = b"\n" + data
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            self.lost += 1
        if written:
            self._torn = data[written - 1 : written] != b"\n"
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def __call__(self, *_names: Any) -> structlog.WriteLogger:
        """A logger that writes here."""
        return structlog.WriteLogger(self)  # type: ignore[arg-type]  # it needs write and flush alone


def lost_lines() -> int:
    """Lines of this process's log that could not be written since :func:`configure`."""
    factory = structlog.get_config()["logger_factory"]
    return factory.lost if isinstance(factory, Lines) else 0


def configure(level: str = "info", *, json: bool = True) -> None:
    """Set up structlog and route the standard library's loggers (uvicorn, SQLAlchemy) through it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_secrets,
    ]
    lines = Lines(sys.stderr.fileno())
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer, _redact],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lines,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
                _redact,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if level != "debug" else logging.INFO)
    logging.captureWarnings(True)  # else they are lines of text between the JSON
    # What a damaged picture makes Pillow warn of is its sender's; what matters is answered as an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _redact(_logger: Any, _method: str, line: Any) -> str:
    """The finished line, tracebacks and all, without API keys that got into it by whatever way."""
    return redact(line)


def _mask_secrets(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    for name in event.keys() & _SECRET_NAMES:
        event[name] = "***"
    return event
