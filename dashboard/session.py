"""What one visitor's session holds: the key (here and nowhere else), the client, the models."""

from __future__ import annotations

import os
import re
import ssl
import time
from dataclasses import dataclass

import httpx
import streamlit as st

from dashboard.client import GatewayClient, GatewayFailure, Model
from dashboard.settings import Settings, demo_key_offered

KEY = "credential"
MODELS = "models"
MODELS_FRESH_S = 5.0


@dataclass(slots=True, frozen=True)
class _Fetched:
    """A list of models and when it was asked for (monotonic seconds)."""

    models: list[Model]
    at: float


@st.cache_resource
def settings() -> Settings:
    """Settings of this process, read once."""
    return Settings.from_environment(os.environ)


@st.cache_resource(on_release=httpx.Client.close)
def _http() -> httpx.Client:
    """One connection pool for all visitors; keys travel with each request, never with the pool.

    Proxy variables are not followed: the gateway is meant to be reached directly.
    """
    chosen = settings()
    timeout = httpx.Timeout(chosen.timeout_s, connect=3.0)
    return httpx.Client(
        base_url=chosen.gateway_url, timeout=timeout, trust_env=False, follow_redirects=False, verify=trust(chosen)
    )


def trust(chosen: Settings) -> ssl.SSLContext | bool:
    """What the gateway's certificate is verified against."""
    if chosen.ca_file is None:
        return True
    context = ssl.create_default_context()
    context.load_verify_locations(chosen.ca_file)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the gateway's own certificate may end the chain
    return context


def key() -> str | None:
    """The visitor's key, if one was given."""
    return st.session_state.get(KEY)


def use_key(value: str) -> None:
    """Take ``value`` as the visitor's key and forget what belonged to the one before."""
    forget_key()
    if value.strip():
        st.session_state[KEY] = value.strip()


def forget_key() -> None:
    """Forget the key and every answer that it paid for."""
    for name in [name for name in st.session_state if name in {KEY, MODELS} or str(name).endswith(".answer")]:
        del st.session_state[name]


def key_label() -> str:
    """How the key is called on the page: its public id, nothing of its secret."""
    match = re.fullmatch(r"(tg_(?:live|test)_[A-Za-z0-9]+)_[A-Za-z0-9_-]+_[A-Za-z0-9]+", key() or "")
    return f"{match.group(1)}_…" if match else "a key"


def client() -> GatewayClient:
    """A client with the visitor's key."""
    return GatewayClient(_http(), key())


def models(task: str | None = None) -> list[Model]:
    """The models that the key may use, asked at most every few seconds; ``task`` narrows them.

    Raises :class:`GatewayFailure`.
    """
    fetched: _Fetched | None = st.session_state.get(MODELS)
    if fetched is None or time.monotonic() - fetched.at > MODELS_FRESH_S:
        fetched = _Fetched(client().models(), time.monotonic())
        st.session_state[MODELS] = fetched
    return [model for model in fetched.models if task is None or task in model.tasks]


def demo_key_available() -> bool:
    """Whether this visitor may be offered the demo key."""
    return demo_key_offered(settings(), st.get_option("server.address"), st.context.headers.get("Host"))


def use_demo_key() -> None:
    """Read the demo key and use it; asked for by a click, never by itself."""
    path = settings().key_file
    if path is None or not demo_key_available():
        raise GatewayFailure("key", "There is no demo key here.")
    try:
        use_key(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayFailure("key", "The demo key cannot be read.") from error
