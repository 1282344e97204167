"""The pepper: what turns a presented key into the digest that the store holds.

It lies in a file of its own, outside the database, one line a version: ``<number> <64 hex digits>``.
Whoever has a dump of the database and not this file can verify no guess. A new version is appended;
the last one is used for new keys, the older ones go on verifying what was made with them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

from gateway.settings import Settings
from gateway.store.files import create_private, private_directory, replace_private

_BYTES = 32


class PepperError(Exception):
    """The pepper file cannot be read, or does not belong to this store."""


class Pepper:
    """Digests of keys under every version of the pepper."""

    def __init__(self, versions: Mapping[int, bytes]) -> None:
        if not versions:
            raise PepperError("the pepper file holds no pepper")
        self._versions = dict(versions)
        self.current = max(self._versions)

    def __repr__(self) -> str:
        return f"Pepper(versions={sorted(self._versions)})"

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version, oldest first."""
        return tuple(sorted(self._versions))

    def digest(self, text: str, version: int | None = None) -> str:
        """Return HMAC-SHA256 of ``text`` in hexadecimal. Raises ``PepperError`` for a lost version."""
        key = self._versions.get(self.current if version is None else version)
        if key is None:
            raise PepperError(f"version {version} is missing from the pepper file")
        return hmac.digest(key, text.encode(), hashlib.sha256).hex()

    def matches(self, text: str, digest: str, version: int) -> bool:
        """Compare in constant time; a lost version matches nothing, and takes as long."""
        known = version if version in self._versions else self.current
        return hmac.compare_digest(self.digest(text, known), digest) and known == version

    def continues(self, other: Pepper) -> bool:
        """Whether this is ``other`` with a version more or less, and not another store's."""
        common = set(self._versions) & set(other._versions)
        return bool(common) and all(self._versions[version] == other._versions[version] for version in common)

    def proof(self, version: int) -> str:
        """Return what the store keeps of a version, to recognise its file again."""
        return self.digest("tidegate pepper", version)


def load_pepper(settings: Settings) -> Pepper:
    """Read the pepper file, making it if there is none. Raises :class:`PepperError`."""
    path = pepper_file(settings)
    try:
        if not path.exists():
            private_directory(path.parent)
            create_private(path, _line(1))  # another process may have been faster: then its file counts
    except OSError as error:
        raise PepperError(f"the pepper file {path}: {error.strerror}") from error
    return read_pepper(settings)


def read_pepper(settings: Settings) -> Pepper:
    """Read the pepper file. Raises :class:`PepperError`."""
    path = pepper_file(settings)
    try:
        return Pepper(_parse(path))
    except OSError as error:
        raise PepperError(f"the pepper file {path}: {error.strerror}") from error


def add_version(settings: Settings) -> Pepper:
    """Append a new version to the pepper file and return what it holds now. Raises :class:`PepperError`.

    One process at a time, or one of two new versions is lost.
    """
    path = pepper_file(settings)
    number = read_pepper(settings).current + 1
    try:
        written = path.read_bytes()
        if not written.endswith(b"\n"):
            written += b"\n"
        replace_private(path, written + _line(number))
    except OSError as error:
        raise PepperError(f"the pepper file {path}: {error.strerror}") from error
    return read_pepper(settings)


def pepper_file(settings: Settings) -> Path:
    """Return where the pepper lies."""
    return settings.pepper_file or settings.data_dir / "pepper"


def _line(number: int) -> bytes:
    return f"{number} {secrets.token_hex(_BYTES)}\n".encode()


def _parse(path: Path) -> dict[int, bytes]:
    versions: dict[int, bytes] = {}
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        try:
            version, key = int(fields[0]), bytes.fromhex(fields[1])
        except (ValueError, IndexError):
            raise PepperError(f"the pepper file {path}: line {number} is not '<number> <hex digits>'") from None
        if len(key) < _BYTES or version in versions:
            raise PepperError(f"the pepper file {path}: line {number} is too short or repeats a version")
        versions[version] = key
    return versions
