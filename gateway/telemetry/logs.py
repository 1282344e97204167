"""Structured logs: one JSON object a line, without payloads and without secrets."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import structlog

from gateway.redaction import redact

_SECRET_NAMES = frozenset({"authorization", "key", "api_key", "credential", "secret", "password", "pepper", "token"})


def configure(level: str = "info", *, json: bool = True) -> None:
    """Set up structlog and route the standard library's loggers (uvicorn, SQLAlchemy) through it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_secrets,
    ]
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer, _redact],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
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
