"""The pages, run headless against a server that speaks the gateway's public surface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard.client import GatewayClient
from tests.dashboard.contract_server import KEY, ContractGateway, ServerThread

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
TIMEOUT_S = 60.0

OpenPage = Callable[..., AppTest]


@pytest.fixture
def gateway() -> Iterator[ContractGateway]:
    with ServerThread() as state:
        yield state


@pytest.fixture
def client(gateway: ContractGateway) -> Iterator[GatewayClient]:
    with httpx.Client(base_url=gateway.url, trust_env=False) as http:
        yield GatewayClient(http, KEY)


@pytest.fixture
def configured(gateway: ContractGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[ContractGateway]:
    """The dashboard's environment; its per-process resources are made anew."""
    monkeypatch.setenv("TIDEGATE_DASHBOARD_GATEWAY_URL", gateway.url)
    st.cache_resource.clear()
    yield gateway
    st.cache_resource.clear()


@pytest.fixture
def open_page(configured: ContractGateway) -> OpenPage:
    """Open the dashboard, at one of its pages, with a key or without."""

    def open_(page: str | None = None, *, key: str | None = KEY) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=TIMEOUT_S)
        if key is not None:
            app.session_state["credential"] = key
        app.run()
        if page is not None:
            app.switch_page(f"views/{page}.py").run()
        assert not app.exception
        return app

    return open_
