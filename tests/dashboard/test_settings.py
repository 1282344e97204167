"""The environment variables, and when the demo key may be offered."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboard import settings as settings_module
from dashboard.__main__ import command
from dashboard.settings import DEFAULT_GATEWAY_URL, PREFIX, ConfigurationError, Settings, demo_key_offered, is_loopback


def test_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings.gateway_url == settings.public_url == DEFAULT_GATEWAY_URL
    assert settings.key_file is None


def test_public_url_follows_the_gateway_unless_given() -> None:
    inside = {"TIDEGATE_DASHBOARD_GATEWAY_URL": "http://gateway:8080/"}
    assert Settings.from_environment(inside).public_url == "http://gateway:8080"
    outside = inside | {"TIDEGATE_DASHBOARD_PUBLIC_URL": "https://models.example.com"}
    assert Settings.from_environment(outside).public_url == "https://models.example.com"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_URL", "127.0.0.1:8080"),
        ("GATEWAY_URL", "file:///etc/passwd"),
        ("GATEWAY_URL", "http://user:secret@host"),
        ("PUBLIC_URL", "http://host/?key=1"),
        ("TIMEOUT_S", "soon"),
        ("TIMEOUT_S", "0"),
        ("TIMEOUT_S", "nan"),
        ("CA_FILE", "/nowhere.pem"),
        ("CA_FILE", __file__),
        ("GATEWY_URL", "http://host"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"TIDEGATE_DASHBOARD_{name}"):
        Settings.from_environment({f"TIDEGATE_DASHBOARD_{name}": value})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8501", True), ("localhost:8501", True), ("::1", True), ("[::1]:8501", True),
        ("0.0.0.0", False), ("", False), (None, False), ("192.168.1.5", False), ("localhost.evil.example", False),
        ("evil.example:8501", False), ("::", False),
    ],
)  # fmt: skip
def test_loopback(host: str | None, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("listening_on", "asked_as", "offered"),
    [
        ("127.0.0.1", "127.0.0.1:8501", True),
        ("localhost", None, True),
        ("0.0.0.0", "127.0.0.1:8501", False),
        (None, "127.0.0.1:8501", False),
        ("127.0.0.1", "rebound.example:8501", False),
    ],
)
def test_demo_key_only_on_loopback(
    tmp_path: Path, listening_on: str | None, asked_as: str | None, offered: bool
) -> None:
    key_file = tmp_path / "demo.key"
    key_file.write_text("key")
    assert demo_key_offered(Settings(key_file=key_file), listening_on, asked_as) is offered


def test_no_demo_key_without_a_file(tmp_path: Path) -> None:
    assert not demo_key_offered(Settings(key_file=tmp_path / "missing"), "127.0.0.1", None)
    assert not demo_key_offered(Settings(), "127.0.0.1", None)


def test_the_port_is_a_setting_of_the_server_not_of_the_pages() -> None:
    assert Settings.from_environment({"TIDEGATE_DASHBOARD_PORT": "9000"}) == Settings()


def test_the_module_becomes_streamlit_with_its_address_and_port() -> None:
    line = command(["--host", "::1", "--port", "9001", "--server.baseUrlPath", "try"], "8501")
    assert line[line.index("--server.address") + 1] == "::1"
    assert line[line.index("--server.port") + 1] == "9001"
    assert line[-2:] == ["--server.baseUrlPath", "try"]
    assert Path(line[line.index("run") + 1]).name == "app.py"
    assert command([], "8600")[-1] == "8600"


def test_every_variable_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "07-dashboard.md").read_text(encoding="utf-8")
    names = {value for name, value in vars(settings_module).items() if name.isupper() and str(value).startswith(PREFIX)}
    assert len(names - {PREFIX}) == 6
    for name in names - {PREFIX}:
        assert f"| `{name}` |" in page
