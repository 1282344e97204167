"""Tokens of a real OpenID Connect provider: a process of its own, on a free port."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.access.authenticator import Authenticator
from gateway.access.oidc import KeySetCache, TokenVerifier, create_token_verifier
from gateway.errors import Unauthenticated, Unavailable
from tests.gateway.access.support import make_call

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True),  # the database plays no part here
]


class Provider:
    """oidc-provider-mock, which gives a signed token to whoever asks."""

    def __init__(self, *options: str, port: int = 0) -> None:
        if not port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self.port = port
        self.issuer = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.issuer}/.well-known/openid-configuration").raise_for_status()
                break
            except httpx.HTTPError:
                assert self._process.poll() is None, "the provider did not start"
                assert time.monotonic() < deadline, "the provider did not become ready"
                time.sleep(0.05)

    def token(self, subject="alice", audience="tidegate", **claims) -> str:
        """An ID token by the authorization code flow."""
        redirect = "http://127.0.0.1/callback"
        with httpx.Client(base_url=self.issuer) as client:
            client.put(f"/users/{subject}", json=claims).raise_for_status()
            parameters = {"client_id": audience, "redirect_uri": redirect, "response_type": "code", "scope": "openid"}
            answer = client.post("/oauth2/authorize", params=parameters, data={"sub": subject})
            code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
            form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect}
            answer = client.post("/oauth2/token", data=form, auth=(audience, "secret"))
            return answer.raise_for_status().json()["id_token"]

    def keys(self) -> list[dict[str, str]]:
        """What it signs with, as it publishes it."""
        return httpx.get(f"{self.issuer}/jwks").raise_for_status().json()["keys"]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def provider():
    provider = Provider()
    yield provider
    provider.stop()


@pytest.fixture
def oidc_settings(settings, provider):
    return settings.model_copy(update={"oidc_issuer": provider.issuer, "oidc_audience": "tidegate"})


@pytest.fixture
def tokens(keys, oidc_settings):
    return create_token_verifier(oidc_settings, keys)


@pytest.fixture
async def authenticator(keys, oidc_settings, tokens, clock):
    authenticator = Authenticator(keys, oidc_settings, tokens=tokens, clock=clock, wall_clock=time.time)
    yield authenticator
    await authenticator.stop()


async def refused(authenticator, token) -> bool:
    try:
        await authenticator.authenticate(make_call(token))
    except Unauthenticated:
        return True
    return False


async def test_a_token_stands_for_its_project_and_scopes(authenticator, tokens, provider):
    token = provider.token(tidegate_project="web", scope="openid infer tidegate:usage:read root")
    principal = await authenticator.authenticate(make_call(token))
    assert (principal.project, principal.organisation) == ("web", "acme")
    assert principal.scopes == {"infer", "usage:read"}
    assert principal.key_id.startswith("oidc-")
    assert "alice" not in principal.key_id
    again = await authenticator.authenticate(make_call(provider.token(tidegate_project="web", scope="infer")))
    assert again.key_id == principal.key_id
    assert tokens.key_sets.fetches == 1  # the key set is remembered


async def test_scopes_may_be_a_list_and_the_project_a_default(keys, oidc_settings, provider):
    settings = oidc_settings.model_copy(
        update={"oidc_default_project": "web", "oidc_scopes_claim": "roles", "oidc_jwks_url": f"{provider.issuer}/jwks"}
    )
    verified = await TokenVerifier(settings, keys).verify(provider.token(roles=["infer", 7, "admin"]))
    assert verified.principal.project == "web"
    assert verified.principal.scopes == {"infer"}


@pytest.mark.parametrize(
    "claims", [{}, {"tidegate_project": "nowhere"}, {"tidegate_project": ["web"]}, {"tidegate_project": 1}], ids=str
)
async def test_a_token_without_a_project_of_ours_is_refused(authenticator, provider, claims):
    assert await refused(authenticator, provider.token(scope="infer", **claims))


async def test_a_token_for_somebody_else_is_refused(authenticator, provider):
    assert await refused(authenticator, provider.token(audience="another", tidegate_project="web"))


async def test_another_issuer_is_refused(keys, oidc_settings, provider):
    other = Provider()
    try:
        settings = oidc_settings.model_copy(update={"oidc_jwks_url": f"{other.issuer}/jwks"})
        assert await TokenVerifier(settings, keys).verify(other.token(tidegate_project="web")) is None
    finally:
        other.stop()


async def test_a_changed_token_is_refused(authenticator, provider):
    head, body, signature = provider.token(tidegate_project="web", scope="infer").split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["scope"] = "infer keys:admin"
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    assert await refused(authenticator, f"{head}.{forged}.{signature}")


@pytest.fixture
async def claims(provider):
    return jwt.decode(provider.token(tidegate_project="web", scope="infer"), options={"verify_signature": False})


async def test_unsigned_and_symmetric_tokens_are_refused(authenticator, tokens, provider, claims):
    published = provider.keys()[0]
    public = jwt.PyJWK(published).key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert await refused(authenticator, jwt.encode(claims, "", algorithm="none"))
    hmac_key = jwt.utils.base64url_encode(public).decode()
    for secret in (hmac_key, "x" * 64):
        assert await refused(authenticator, jwt.encode(claims, secret, algorithm="HS256"))
    assert tokens.key_sets.fetches == 0  # the algorithm alone decides


async def test_a_key_of_ones_own_is_refused(authenticator, provider, claims):
    own = rsa.generate_private_key(65537, 2048)
    kid = provider.keys()[0].get("kid")
    for headers in ({}, {"kid": kid or "y"}, {"kid": "x"}, {"jku": "http://127.0.0.1:1/jwks"}):
        assert await refused(authenticator, jwt.encode(claims, own, algorithm="RS256", headers=headers))


async def test_an_expired_token_is_refused(keys, oidc_settings, clock):
    provider = Provider("--token-max-age", "-60")
    try:
        settings = oidc_settings.model_copy(update={"oidc_issuer": provider.issuer})
        assert await TokenVerifier(settings, keys).verify(provider.token(tidegate_project="web")) is None
    finally:
        provider.stop()


async def test_keys_rotate_with_the_provider(keys, oidc_settings, clock):
    first = Provider()
    settings = oidc_settings.model_copy(update={"oidc_issuer": first.issuer})
    verifier = TokenVerifier(settings, keys, key_sets=KeySetCache(first.issuer, None, clock=clock))
    old = first.token(tidegate_project="web")
    assert await verifier.verify(old)
    first.stop()
    assert await verifier.verify(old)  # the provider is away: its keys still count
    second = Provider(port=first.port)
    try:
        new = second.token(tidegate_project="web")
        clock.forward(11)
        assert await verifier.verify(new)
        assert await verifier.verify(old) is None
        fetches = verifier.key_sets.fetches
        for _ in range(20):  # tokens of unknown keys make no storm of fetches
            assert await verifier.verify(old) is None
        assert verifier.key_sets.fetches <= fetches + 1
    finally:
        second.stop()


async def test_a_provider_that_was_never_there_is_unavailable(keys, oidc_settings, claims):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = oidc_settings.model_copy(update={"oidc_issuer": f"http://127.0.0.1:{probe.getsockname()[1]}"})
        own = rsa.generate_private_key(65537, 2048)
        with pytest.raises(Unavailable):
            await TokenVerifier(settings, keys).verify(jwt.encode(claims, own, algorithm="RS256"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:9/jwks"])
async def test_a_secure_issuer_is_asked_over_https_only(url, settings):
    cache = KeySetCache("https://issuer.example", url)
    with pytest.raises(ValueError, match="https"):
        cache._read(url)


async def test_issuer_and_audience_belong_together(keys, settings):
    assert create_token_verifier(settings, keys) is None
    with pytest.raises(ValueError, match="audience"):
        TokenVerifier(settings.model_copy(update={"oidc_issuer": "https://issuer.example"}), keys)
