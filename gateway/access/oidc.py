"""Bearer tokens of an OpenID Connect provider, beside keys: JWTs checked against its published keys."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import structlog

from gateway.access.authenticator import Verified
from gateway.access.keys import Keys
from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.types import SCOPES, Principal

log = structlog.get_logger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Asymmetric only: never ``none``, never HMAC with a public key as its secret."""

_KEY_TYPES = ("RSA", "EC", "OKP")
_LEEWAY_S = 30
_REFRESH_S = 600.0
_RETRY_S = 10.0
"""Between fetches of the keys, however many tokens name a key that is not known."""
_FETCH_TIMEOUT_S = 5.0
_MAX_DOCUMENT = 2**20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Follow nothing: the provider's addresses are what its operator wrote."""
        return


@dataclass(slots=True)
class _KeySet:
    keys: dict[str, jwt.PyJWK]
    fetched_at: float


class KeySetCache:
    """The provider's signing keys: fetched when needed, kept when it is away, rotated with it."""

    def __init__(self, issuer: str, jwks_url: str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._clock = clock
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._set: _KeySet | None = None
        self._tried_at = -math.inf
        self._flight: asyncio.Task[None] | None = None
        self.fetches = 0
        """Fetches of the key set."""

    async def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key of this id; of a provider with one key, that. Raises ``Unavailable``."""
        key = self._known(key_id)
        if key is None:
            await self.renew()
            if self._set is None:
                raise Unavailable("Tokens cannot be checked at the moment.", retry_after_s=5.0)
            return self._known(key_id)
        now = self._clock()
        if self._set is not None and now - self._set.fetched_at > _REFRESH_S and now - self._tried_at > _RETRY_S:
            self._fetch()  # in the background: the key at hand still counts
        return key

    async def renew(self) -> None:
        """Fetch the keys again, unless that was done a moment ago."""
        if self._flight is not None or self._clock() - self._tried_at > _RETRY_S:
            await asyncio.shield(self._flight or self._fetch())

    def _known(self, key_id: str | None) -> jwt.PyJWK | None:
        if self._set is None:
            return None
        if key_id is None:
            return next(iter(self._set.keys.values())) if len(self._set.keys) == 1 else None
        return self._set.keys.get(key_id)

    def _fetch(self) -> asyncio.Task[None]:
        if self._flight is None:
            self._tried_at = self._clock()
            self._flight = asyncio.create_task(self._fetch_set(), name="oidc key set")
            self._flight.add_done_callback(self._landed)
        return self._flight

    def _landed(self, _task: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetch_set(self) -> None:
        self.fetches += 1
        try:
            if self._jwks_url is None:
                base = self._issuer.rstrip("/")
                document = await asyncio.to_thread(self._read, f"{base}/.well-known/openid-configuration")
                if document.get("issuer") != self._issuer:
                    raise ValueError("the discovery document names another issuer")
                self._jwks_url = str(document["jwks_uri"])
            keys = _signing_keys(await asyncio.to_thread(self._read, self._jwks_url))
        except (OSError, ValueError, KeyError, jwt.PyJWTError) as error:
            log.warning("oidc.keys_not_fetched", error=type(error).__name__)
            return
        self._set = _KeySet(keys, self._clock())

    def _read(self, url: str) -> dict[str, Any]:
        """Read a JSON object. Raises ``OSError`` and ``ValueError``."""
        scheme, secure = urlsplit(url).scheme, urlsplit(self._issuer).scheme == "https"
        if scheme != "https" and (secure or scheme != "http"):
            raise ValueError("the provider's addresses must be https")
        with self._opener.open(url, timeout=_FETCH_TIMEOUT_S) as response:
            document = json.loads(response.read(_MAX_DOCUMENT))
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        return document


class TokenVerifier:
    """Verifies JWTs of one issuer for one audience, and maps their claims."""

    def __init__(self, settings: Settings, keys: Keys, *, key_sets: KeySetCache | None = None) -> None:
        """Raise ``ValueError`` if the settings name no issuer or no audience."""
        if not settings.oidc_issuer or not settings.oidc_audience:
            raise ValueError("oidc_issuer and oidc_audience belong together")
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._project_claim = settings.oidc_project_claim
        self._default_project = settings.oidc_default_project
        self._scopes_claim = settings.oidc_scopes_claim
        self._keys = keys
        self.key_sets = key_sets or KeySetCache(settings.oidc_issuer, settings.oidc_jwks_url)

    async def verify(self, token: str) -> Verified | None:
        """Return who a token stands for; None if it is not valid. Raises ``Unavailable``."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return None
        key_id = header.get("kid")
        if header.get("alg") not in ALGORITHMS or not (key_id is None or isinstance(key_id, str)):
            return None
        key = await self.key_sets.key(key_id)
        try:
            claims = self._decode(token, header["alg"], key)
        except jwt.InvalidSignatureError:
            await self.key_sets.renew()  # rotated under the same name, or under none
            newer = await self.key_sets.key(key_id)
            if newer is key:
                return None
            try:
                claims = self._decode(token, header["alg"], newer)
            except (jwt.PyJWTError, ValueError, TypeError):
                return None
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        return await self._map(claims)

    def _decode(self, token: str, algorithm: str, key: jwt.PyJWK | None) -> dict[str, Any]:
        if key is None:
            raise jwt.InvalidKeyError("no such key")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            issuer=self._issuer,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims

    async def _map(self, claims: dict[str, Any]) -> Verified | None:
        project = claims.get(self._project_claim, self._default_project)
        if not isinstance(project, str):
            return None
        organisation = await self._keys.project_organisation(project)
        if organisation is None:
            return None
        granted = claims.get(self._scopes_claim, "")
        names = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else []
        scopes = frozenset(scope for scope in SCOPES if scope in names or f"tidegate:{scope}" in names)
        subject = hashlib.sha256(f"{self._issuer}\n{claims['sub']}".encode()).hexdigest()[:24]
        principal = Principal(f"oidc-{subject}", project, organisation, scopes)
        return Verified(principal, float(claims["exp"]) + _LEEWAY_S)


def create_token_verifier(settings: Settings, keys: Keys) -> TokenVerifier | None:
    """Return the verifier that the settings ask for; None where they name no issuer."""
    return TokenVerifier(settings, keys) if settings.oidc_issuer else None


def _signing_keys(document: dict[str, Any]) -> dict[str, jwt.PyJWK]:
    found: dict[str, jwt.PyJWK] = {}
    for item in document.get("keys", []):
        if isinstance(item, dict) and item.get("kty") in _KEY_TYPES and item.get("use", "sig") == "sig":
            try:
                found[str(item.get("kid", ""))] = jwt.PyJWK(item)
            except jwt.PyJWTError:
                continue  # a curve or algorithm that is not served; the others are
    if not found:
        raise ValueError("the key set holds no signing key that is served")
    return found
