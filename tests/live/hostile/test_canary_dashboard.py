"""Case 72 on the dashboard: a key given to it is on none of its pages, whatever the gateway says to that key.

The real pages against a gateway and a Triton of their own: refused keys would have the shared stack throttle this
machine. What is looked at is everything that a page sends to a browser, and afterwards all that the gateway wrote.
"""

from __future__ import annotations

import io
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from embedded.launcher import serving
from gateway.access import keyformat
from tests.live.hostile.second import Second, second_gateway

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
APP = ROOT / "dashboard" / "app.py"
MODELS = ("digits", "sentiment", "embeddings")
TASKS = (
    "image_classification", "text_classification", "entities", "question_answering", "translation", "similarity",
    "zero_shot",
)  # fmt: skip
PAGES = ("start", "models", "usage", *TASKS)


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Second]:
    with (
        serving(ROOT / "model_repository", tmp_path / "triton", MODELS) as triton,
        second_gateway(tmp_path / "data", triton.grpc_url, models=",".join(MODELS), log_level="debug") as running,
    ):
        yield running


@pytest.fixture
def canaries(second: Second) -> dict[str, str]:
    """A good key, one for a single model, one without any right here, and keys that are none any more or never were."""
    good = second.make_key("--label", "canary", "--scope", "infer", "--scope", "usage:read")
    keys = {
        "good": good,
        "of one model": second.make_key("--model", "digits"),
        "revoked": second.make_key(),
        "without a right": second.make_key("--scope", "audit:read"),
        "elsewhere": second.make_key("--address", "192.0.2.0/24"),
        "mistyped": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "unknown": keyformat.generate(keyformat.generate_id(), test=False).text,
        "with a line break": f"{good}\n{good}",
        "no ASCII": f"{good}é",
    }
    command = [sys.executable, "-m", "tidegate", "keys", "revoke", keys["revoked"].split("_")[2]]
    subprocess.run(command, env=second.environment, cwd=ROOT, check=True, capture_output=True, timeout=60)
    return keys


@pytest.fixture
def dashboard(second: Second, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the gateway that the pages ask."""

    def ask(url: str) -> None:
        monkeypatch.setenv("TIDEGATE_DASHBOARD_GATEWAY_URL", url)
        st.cache_resource.clear()

    ask(second.gateway.url)
    yield ask
    st.cache_resource.clear()


def sent(app: AppTest) -> bytes:
    """Everything that the browser would get of the page, and an exception that it would be shown."""
    assert not app.exception
    nodes: list[Any] = list(app._tree)
    assert len(nodes) > 5
    return b"".join(node.proto.SerializeToString() for node in nodes if getattr(node, "proto", None) is not None)


def visit(page: str, key: str) -> Iterator[bytes]:
    """The page with a key typed into the sidebar, and with its button clicked if there is one."""
    app = AppTest.from_file(str(APP), default_timeout=60.0).run()
    yield sent(app)
    app.switch_page(f"views/{page}.py").run()
    app.sidebar.text_input[0].set_value(key)
    app.sidebar.button[0].click().run()
    assert app.session_state["credential"]
    yield sent(app)
    if page == "image_classification" and app.segmented_control:
        app.segmented_control(key=f"{page}.way").set_value("Upload").run()
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
        app.file_uploader[0].upload("a.png", picture.getvalue(), "image/png").run()
    if any(button.key == f"{page}.run" for button in app.button):
        app.button(key=f"{page}.run").click().run()
        yield sent(app)
    app.sidebar.button(key="forget_key").click().run()
    yield sent(app)


def leaked(text: bytes, keys: dict[str, str]) -> str | None:
    for name, key in keys.items():
        secret = key.split("_")[3]
        for needle in (secret, secret[:16], secret[-16:]):
            at = text.find(needle.encode())
            if at >= 0:
                return f"{name}: …{text[max(0, at - 200) : at]!r}"
    return None


def test_72_no_page_shows_a_key(
    second: Second, canaries: dict[str, str], tmp_path: Path, dashboard: Callable[[str], None],
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")  # what a library says of a request, too
    seen = 0
    for page in PAGES:
        everywhere = {"good", "revoked"} if page not in {"models", "image_classification"} else set(canaries)
        for name in sorted(everywhere):
            for text in visit(page, canaries[name]):
                assert leaked(text, canaries) is None, f"{page}, {name}: {leaked(text, canaries)}"
                seen += 1
    dashboard("http://127.0.0.1:9")  # nobody listens
    for page in ("start", "usage", "translation"):
        for text in visit(page, canaries["good"]):
            assert leaked(text, canaries) is None, f"{page}, no gateway: {leaked(text, canaries)}"
            seen += 1
    assert seen > 80
    written = {"the dashboard's own output": "".join(capfd.readouterr()).encode(), "its log": caplog.text.encode()}
    written["metrics"] = httpx.get(second.gateway.metrics_url, timeout=30).content
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "demo.key":
            written[path.name] = path.read_bytes()
    database = sqlite3.connect(f"file:{tmp_path / 'data' / 'tidegate.db'}?mode=ro", uri=True)
    try:
        written["the database"] = "\n".join(database.iterdump()).encode()
    finally:
        database.close()
    for where, text in written.items():
        assert leaked(text, canaries) is None, f"{where}: {leaked(text, canaries)}"
    # It can find something: the ids of keys are no secret.
    assert canaries["good"].split("_")[2].encode() in written["the database"]
