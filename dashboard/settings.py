"""Where the dashboard finds the gateway, from ``TIDEGATE_DASHBOARD_*``."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "TIDEGATE_DASHBOARD_"
GATEWAY_URL = PREFIX + "GATEWAY_URL"
PUBLIC_URL = PREFIX + "PUBLIC_URL"
KEY_FILE = PREFIX + "KEY_FILE"
TIMEOUT_S = PREFIX + "TIMEOUT_S"
CA_FILE = PREFIX + "CA_FILE"
PORT = PREFIX + "PORT"
"""Where to listen; read at start, by ``tidegate up`` too."""
DEFAULT_GATEWAY_URL = "http://127.0.0.1:8080"


class ConfigurationError(Exception):
    """An environment variable that cannot be used; the message names it."""


@dataclass(slots=True, frozen=True)
class Settings:
    """The dashboard's configuration."""

    gateway_url: str = DEFAULT_GATEWAY_URL
    """Base URL that the dashboard's own requests go to."""
    public_url: str = DEFAULT_GATEWAY_URL
    """Base URL that a visitor reaches the gateway under; it stands in the curl and Python lines."""
    key_file: Path | None = None
    """A demo key to offer, and only while the dashboard listens on loopback."""
    timeout_s: float = 60.0
    """Seconds for one call to the gateway."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust beside the usual authorities: the gateway's own, if no authority signed it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read ``TIDEGATE_DASHBOARD_*``. Raises :class:`ConfigurationError`."""
        known = {GATEWAY_URL, PUBLIC_URL, KEY_FILE, TIMEOUT_S, CA_FILE, PORT}
        unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise ConfigurationError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        gateway_url = _base_url(GATEWAY_URL, environment.get(GATEWAY_URL) or DEFAULT_GATEWAY_URL)
        public_url = _base_url(PUBLIC_URL, environment.get(PUBLIC_URL) or gateway_url)
        key_file = environment.get(KEY_FILE)
        return cls(
            gateway_url,
            public_url,
            Path(key_file) if key_file else None,
            _seconds(environment.get(TIMEOUT_S)),
            _certificates(environment.get(CA_FILE)),
        )


def _base_url(name: str, value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(f"{name} must be an http or https URL, not {value!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"{name} must be a plain base URL: no user, query or fragment")
    return value.rstrip("/")


def _certificates(value: str | None) -> Path | None:
    if not value:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"{CA_FILE} must be a file of certificates (PEM), not {value!r}") from error
    return Path(value)


def _seconds(value: str | None) -> float:
    if not value:
        return 60.0
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 600:
        raise ConfigurationError(f"{TIMEOUT_S} must be a number of seconds from above 0 to 600, not {value!r}")
    return seconds


def is_loopback(host: str | None) -> bool:
    """Whether ``host`` (a name or an address, with or without a port) can only mean this machine."""
    if not host:
        return False
    name = urlsplit(f"//{host}").hostname if not _is_address(host) else host
    if name is None:
        return False
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def demo_key_offered(settings: Settings, listening_on: str | None, asked_as: str | None) -> bool:
    """Whether a visitor may be offered the demo key.

    Only while the dashboard listens on loopback, and only to a browser that asked for it under a
    loopback name: a page elsewhere whose DNS name points at 127.0.0.1 must not get it.
    """
    return (
        settings.key_file is not None
        and settings.key_file.is_file()
        and is_loopback(listening_on)
        and (asked_as is None or is_loopback(asked_as))
    )
