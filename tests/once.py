"""What libraries do again for each client or page, and whose result never changes here: done once in a process."""

from __future__ import annotations

import functools
import ssl
from typing import Any

import httpx
from httpx._transports import default as transports
from streamlit.components.v2 import manifest_scanner


@functools.cache
def _everybodys_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    if verify is True and cert is None:
        return _everybodys_authorities()
    return httpx.create_ssl_context(verify, cert, trust_env)


def install() -> None:
    """Each ``httpx.get`` reads the authorities of the whole internet (20 ms), each page that is tested the metadata of
    every installed package (400 ms).
    """
    transports.create_ssl_context = _context
    manifest_scanner.scan_component_manifests = functools.cache(manifest_scanner.scan_component_manifests)
