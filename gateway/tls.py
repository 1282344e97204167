"""TLS for both listeners: one certificate, read again when its files change, without a restart.

A new certificate is for new connections; open ones go on with the old. Files that cannot be used change
nothing: the old certificate stays, and ``stale`` says so until the files are mended.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import structlog
from cryptography import x509

from gateway.settings import Settings

log = structlog.get_logger(__name__)

HANDSHAKES = 64
"""Connections in their handshake beside all those that may be open."""

FileState = tuple[int, int, int]
"""What tells a file from its successor: inode, size, time of change in ns."""


class TlsError(Exception):
    """Certificate files that cannot be used; the message is one line for the operator."""


@dataclass(slots=True, frozen=True)
class Material:
    """One state of the files, ready for both transports."""

    http: ssl.SSLContext
    grpc: ssl.SSLContext
    expires_at: float
    """Seconds since the epoch."""


class Connection(ssl.SSLObject):
    """One connection's TLS, which says when its handshake is over."""

    handshakes: weakref.WeakSet[Connection]

    def do_handshake(self) -> None:
        """Called by the event loop until it raises no more."""
        super().do_handshake()
        self.handshakes.discard(self)


class ListenerContext(ssl.SSLContext):
    """What a listener holds for good: each new connection gets the newest certificate's own context.

    It also counts handshakes: until one is over, the protocol knows nothing of the connection and could not
    refuse it. A handshake that fails leaves the count when the event loop lets go of it.
    """

    newest: ssl.SSLContext
    max_connections: int
    open_connections: Callable[[], int]
    """Connections whose handshake is over; set by the listener."""
    _handshakes: weakref.WeakSet[Connection]

    @classmethod
    def over(cls, newest: ssl.SSLContext, max_connections: int) -> ListenerContext:
        """A context for the listener."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.newest, context.max_connections = newest, max_connections
        context.open_connections = int
        context._handshakes = weakref.WeakSet()
        return context

    @property
    def handshakes(self) -> int:
        """Connections in their handshake."""
        return len(self._handshakes)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Called by the event loop for every connection. Raises ``ssl.SSLError``: it is closed then.

        Somewhat more connections are taken than there may be: the protocol answers those with 503.
        """
        if len(self._handshakes) + self.open_connections() >= self.max_connections + HANDSHAKES:
            raise ssl.SSLError("too many connections")
        wrapped: Any = self.newest.wrap_bio(*arguments, **options)
        wrapped.handshakes = self._handshakes
        self._handshakes.add(wrapped)
        return wrapped  # type: ignore[no-any-return]


class Tls:
    """The certificate of one gateway. Raises :class:`TlsError` if the files cannot be used at the start."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        if settings.tls_cert is None or settings.tls_key is None:
            raise TlsError("TIDEGATE_TLS_CERT and TIDEGATE_TLS_KEY belong together")
        self._certificate, self._key = settings.tls_cert, settings.tls_key
        self._client_ca = settings.tls_client_ca
        self._client_required = settings.tls_client_auth == "required"
        self._interval_s = settings.tls_reload_s
        self._clock = clock
        self.reloads = 0
        self.failures = 0
        self.stale = False
        """Whether the files are not what is served, because they cannot be used."""
        self._seen = self._states()
        self._material = self._load()
        self.context = ListenerContext.over(self._material.http, settings.max_connections)
        self.grpc_context = ListenerContext.over(self._material.grpc, settings.max_connections)

    @property
    def expiry_s(self) -> float:
        """Seconds until the certificate expires; negative when it has."""
        return self._material.expires_at - self._clock()

    def reload(self) -> bool:
        """Read the files again; False, and the old certificate stays, if they cannot be used."""
        self._seen = self._states()
        try:
            material = self._load()
        except TlsError as error:
            self.failures += 1
            self.stale = True
            log.error("tls.reload_failed", reason=str(error))
            return False
        self.reloads += 1
        self.stale = False
        self._material = material
        self.context.newest, self.grpc_context.newest = material.http, material.grpc
        log.info("tls.reloaded", expires_in_s=int(self.expiry_s))
        return True

    async def watch(self) -> None:
        """Reload whenever the files have changed, forever."""
        while True:
            await asyncio.sleep(self._interval_s)
            if self._states() != self._seen:
                await asyncio.to_thread(self.reload)

    # --- files

    @property
    def _paths(self) -> Sequence[Path]:
        return [path for path in (self._certificate, self._key, self._client_ca) if path is not None]

    def _states(self) -> list[FileState | None]:
        return [_state(path) for path in self._paths]

    def _load(self) -> Material:
        before = self._states()
        chain = _read(self._certificate, "certificate")
        _read(self._key, "key")
        authorities = None if self._client_ca is None else _read(self._client_ca, "client CA")
        leaf = _leaf(chain, self._certificate)
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        if leaf.not_valid_after_utc <= now:
            raise TlsError(f"the certificate in {self._certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
        if leaf.not_valid_before_utc > now:
            raise TlsError(
                f"the certificate in {self._certificate} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M}"
            )
        http, grpc = self._context(authorities, "http/1.1"), self._context(authorities, "h2")
        if self._states() != before:
            raise TlsError("the certificate's files changed while they were read")  # and are read again, for that
        return Material(http, grpc, leaf.not_valid_after_utc.timestamp())

    def _context(self, authorities: bytes | None, protocol: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([protocol])
        context.sslobject_class = Connection
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise TlsError(f"{self._certificate} and {self._key} cannot be used: {_reason(error)}") from error
        if authorities is not None:
            try:
                context.load_verify_locations(cadata=authorities.decode("ascii"))
            except (ssl.SSLError, UnicodeDecodeError) as error:
                raise TlsError(f"{self._client_ca} has no certificates of authorities") from error
            context.verify_mode = ssl.CERT_REQUIRED if self._client_required else ssl.CERT_OPTIONAL
        return context


def open_tls(settings: Settings) -> Tls | None:
    """The certificate that ``settings`` name; None without one. Raises :class:`TlsError`."""
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.tls_client_ca is not None:
            raise TlsError("TIDEGATE_TLS_CLIENT_CA needs TIDEGATE_TLS_CERT and TIDEGATE_TLS_KEY")
        return None
    return Tls(settings)


def certificate_names(path: Path) -> list[str]:
    """Host names and addresses that the certificate in ``path`` is for. Raises :class:`TlsError`."""
    leaf = _leaf(_read(path, "certificate"), path)
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _leaf(chain: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise TlsError(f"{path} has no certificate in PEM form") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"the {what} file {path} cannot be read: {error.strerror or error}") from error


def _state(path: Path) -> FileState | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - follows links, as mounted secrets are
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _no_password() -> NoReturn:
    """Else OpenSSL would ask for one on the terminal, and wait."""
    raise ValueError("the key is encrypted; the gateway takes keys without a password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not in PEM form").lower().replace("_", " ")
    return str(error)
