"""What can go wrong with the embedded Triton; every message is one line that says what to do or where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class EmbeddedTritonError(Exception):
    """Base of everything that this package raises on purpose."""


class WheelNotFoundError(EmbeddedTritonError):
    """The wheel that carries ``tritonserver`` is missing, or a part of it is."""


class UnsupportedPythonError(EmbeddedTritonError):
    """The running Python has no stub in the wheel, or its shared library cannot be found."""


class PortInUseError(EmbeddedTritonError):
    """Another process listens on a port that the server was given."""

    def __init__(self, purpose: str, port: int) -> None:
        super().__init__(f"port {port} ({purpose} of Triton) is already in use")
        self.purpose = purpose
        self.port = port


class ServerDiedError(EmbeddedTritonError):
    """The server's process ended on its own; the message carries the last lines of its log."""

    def __init__(self, status: str, log_file: Path, last_lines: str) -> None:
        super().__init__(f"Triton ended ({status}), see {log_file}: {last_lines or 'the log is empty'}")
        self.log_file = log_file


class ServerNotReadyError(EmbeddedTritonError):
    """The server or a model did not become ready in time, or a control call could not be answered."""


class ModelLoadError(EmbeddedTritonError):
    """Triton refused to load models: ``failures`` maps each name to its reason, one line each."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"model {name!r} did not load: {reason}" for name, reason in failures.items()))
        self.failures = dict(failures)
