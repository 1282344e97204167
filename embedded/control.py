"""Triton's health and model-repository calls over HTTP on loopback, with nothing but the standard library.

Source: Triton's HTTP/REST extensions ``model_repository`` and ``health``.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote

from embedded.errors import ModelLoadError, ServerNotReadyError

PROBE_TIMEOUT_S = 2.0


class TritonControl:
    """One server's control calls; a connection per call, safe to use from several threads.

    Every method raises :class:`ServerNotReadyError` when the server cannot be reached or answers nonsense.
    """

    def __init__(self, url: str) -> None:
        """``url``: ``host:port`` of the HTTP listener."""
        self._url = url

    def is_live(self) -> bool:
        """True when the server answers."""
        try:
            status, _ = self._request("GET", "/v2/health/live", PROBE_TIMEOUT_S)
        except ServerNotReadyError:
            return False
        return status == http.client.OK

    def index(self) -> dict[str, tuple[bool, str]]:
        """Each model of the repository: whether a version of it is ready, and Triton's reason when none is."""
        status, body = self._request("POST", "/v2/repository/index", PROBE_TIMEOUT_S)
        if status != http.client.OK or not isinstance(body, list):
            raise ServerNotReadyError(f"Triton at {self._url} did not list its models (status {status})")
        models: dict[str, tuple[bool, str]] = {}
        for entry in body:
            ready = entry.get("state") == "READY"
            if ready or entry["name"] not in models:
                models[entry["name"]] = (ready, entry.get("reason", ""))
        return models

    def ready_models(self) -> frozenset[str]:
        """Names of the models of which at least one version is ready."""
        return frozenset(name for name, (ready, _) in self.index().items() if ready)

    def load(self, name: str, timeout_s: float) -> None:
        """Load or reload a model; returns when it is ready. Raises :class:`ModelLoadError` with Triton's reason."""
        status, body = self._request("POST", f"/v2/repository/models/{quote(name, safe='')}/load", timeout_s)
        if status != http.client.OK:
            raise ModelLoadError({name: _reason(body, status)})

    def unload(self, name: str, timeout_s: float) -> None:
        """Unload a model; requests it has accepted are still answered."""
        status, body = self._request("POST", f"/v2/repository/models/{quote(name, safe='')}/unload", timeout_s)
        if status != http.client.OK:
            raise ServerNotReadyError(f"Triton did not unload {name!r}: {_reason(body, status)}")

    def _request(self, method: str, path: str, timeout_s: float) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self._url, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if body else None
        except TimeoutError as error:
            raise ServerNotReadyError(f"Triton did not answer {path} within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerNotReadyError(f"Triton at {self._url} cannot be reached: {error}") from error
        finally:
            connection.close()


def _reason(body: Any, status: int) -> str:
    """The telling line of Triton's error: without its preamble and without a backend's traceback."""
    text = str(body.get("error", "")) if isinstance(body, dict) else ""
    text = text.split("\n\nAt:\n")[0]  # pybind11 appends where in the backend's Python it was raised
    for preamble in ("UNAVAILABLE state: ", "Internal: ", "TritonModelException: "):
        text = text.split(preamble, 1)[-1]
    text = " ".join(text.split()).rstrip("; ")
    return text or f"status {status}"
