"""``tidegate keys`` and ``tidegate audit`` as an operator types them."""

from __future__ import annotations

import json
import re
import stat

import pytest
from typer.testing import CliRunner

from gateway.access import keyformat
from tidegate.commands import audit, keys


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "data"


@pytest.fixture
def tidegate(data_dir):
    """Runs a command: exit code, standard output, standard error."""

    def run(app, *arguments):
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def as_json(tidegate):
    def run(app, *arguments):
        code, out, err = tidegate(app, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def test_a_key_is_shown_once(tidegate, as_json, data_dir):
    code, out, err = tidegate(keys.app, "create", "--project", "web", "--label", "a [red]label", "--scope", "infer")
    assert code == 0
    key = out.strip()
    presented = keyformat.parse(key)
    assert presented is not None
    assert "once" in err
    listed = as_json(keys.app, "list")
    assert [item["key_id"] for item in listed] == [presented.key_id]
    assert listed[0]["label"] == "a [red]label"
    for words in (["list"], ["list", "--json"], ["show", presented.key_id], ["show", listed[0]["prefix"], "--json"]):
        code, out, _ = tidegate(keys.app, *words)
        assert code == 0
        assert presented.key_id in out
        assert key.split("_")[3] not in out
    for path in data_dir.iterdir():
        assert key.split("_")[3].encode() not in path.read_bytes()


def test_everything_about_a_key_can_be_said(as_json):
    made = as_json(
        keys.app, "create", "--project", "web", "--organisation", "acme", "--scope", "infer", "--scope", "usage:read",
        "--model", "qa", "--model", "digits", "--address", "10.0.0.0/8", "--tier", "gold", "--test", "--expires", "90d",
    )  # fmt: skip
    assert made["key"].startswith("tg_test_")
    assert (made["organisation"], made["scopes"], made["models"]) == ("acme", ["infer", "usage:read"], ["digits", "qa"])
    assert (made["addresses"], made["tier"], made["state"]) == (["10.0.0.0/8"], "gold", "active")
    assert made["expires_at"] > made["created_at"]


def test_a_key_goes_to_a_new_private_file(tidegate, tmp_path):
    path = tmp_path / "admin.key"
    code, out, _ = tidegate(keys.app, "bootstrap", "--write", str(path))
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text().strip()
    assert keyformat.parse(key) is not None
    assert key.split("_")[3] not in out
    code, _, err = tidegate(keys.app, "create", "--project", "web", "--write", str(path))
    assert (code, "exists already" in err) == (1, True)
    code, _, err = tidegate(keys.app, "create", "--project", "web", "--write", str(tmp_path / "no" / "key"))
    assert (code, "no folder" in err) == (1, True)
    assert path.read_text().strip() == key


def test_the_first_administrator_is_made_once(tidegate, as_json):
    assert as_json(keys.app, "bootstrap")["scopes"] == sorted(
        ["infer", "usage:read", "models:admin", "keys:admin", "audit:read"]
    )
    code, out, err = tidegate(keys.app, "bootstrap")
    assert (code, out) == (1, "")
    assert "already" in err


def test_rotate_and_revoke(tidegate, as_json):
    made = as_json(keys.app, "create", "--project", "web")
    rotated = as_json(keys.app, "rotate", made["prefix"], "--overlap", "2h", "--name", "one")
    code, out, _ = tidegate(keys.app, "show", made["key_id"])
    assert code == 0
    assert "{" not in out
    assert all(f"…{text[-4:]} of " in out for text in (made["key"], rotated["key"]))
    assert out.count(" until ") == 1  # the old secret's
    assert rotated["key_id"] == made["key_id"]
    assert rotated["key"] != made["key"]
    assert [bool(secret["expires_at"]) for secret in rotated["secrets"]] == [True, False]
    assert "key" not in as_json(keys.app, "rotate", made["key_id"], "--name", "one")
    assert as_json(keys.app, "revoke", made["key_id"])["state"] == "revoked"
    assert as_json(keys.app, "revoke", made["key_id"])["state"] == "revoked"
    code, _, err = tidegate(keys.app, "rotate", made["key_id"])
    assert (code, "not active" in err) == (1, True)


def test_a_key_is_changed(tidegate, as_json):
    made = as_json(keys.app, "create", "--project", "web", "--model", "qa", "--address", "10.0.0.0/8")
    changed = as_json(
        keys.app, "update", made["key_id"], "--label", "shop", "--scope", "infer", "--scope", "usage:read",
        "--any-model", "--address", "192.0.2.0/24", "--tier", "gold", "--expires", "1d",
    )  # fmt: skip
    assert (changed["label"], changed["scopes"], changed["models"]) == ("shop", ["infer", "usage:read"], None)
    assert (changed["addresses"], changed["tier"], changed["state"]) == (["192.0.2.0/24"], "gold", "active")
    assert changed["expires_at"] > changed["created_at"]
    again = as_json(keys.app, "update", made["prefix"], "--any-address", "--expires", "never", "--model", "digits")
    assert (again["addresses"], again["expires_at"], again["models"]) == (None, None, ["digits"])
    assert (again["label"], again["tier"]) == ("shop", "gold")  # what is not named stays
    assert [record["action"] for record in as_json(audit.app, "list")][-2:] == ["key.update"] * 2
    for words, says in (([], "nothing to change"), (["--model", "qa", "--any-model"], "excludes"),
                        (["--scope", "root"], "scopes must be")):  # fmt: skip
        code, out, err = tidegate(keys.app, "update", made["key_id"], *words)
        assert (code > 0, out) == (True, "")
        assert says in err


FAILURES = {
    "no such key": ["show", "nothing"],
    "not a duration": ["create", "--project", "web", "--expires", "soon"],
    "scopes must be": ["create", "--project", "web", "--scope", "root"],
    "project must be": ["create", "--project", "../web"],
}


def test_failures_are_one_line(tidegate, as_json):
    as_json(keys.app, "create", "--project", "web")
    for message, words in FAILURES.items():
        code, out, err = tidegate(keys.app, *words)
        assert (code, out) == (1, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_settings_that_are_none_are_one_line(tidegate, monkeypatch):
    monkeypatch.setenv("TIDEGATE_KEY_CACHE_TTL_S", "never")
    code, _, err = tidegate(keys.app, "list")
    assert code == 2
    assert "TIDEGATE_KEY_CACHE_TTL_S" in err
    monkeypatch.delenv("TIDEGATE_KEY_CACHE_TTL_S")
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", "mysql://user:hunter2@host/db")
    code, _, err = tidegate(keys.app, "list")
    assert code == 1
    assert "hunter2" not in err


def test_the_audit_is_listed_exported_and_verified(tidegate, as_json, tmp_path, data_dir):
    as_json(keys.app, "create", "--project", "web")
    code, out, _ = tidegate(audit.app, "verify")
    assert (code, out.split(",")[0]) == (0, "whole: 2 records")
    assert [record["action"] for record in as_json(audit.app, "list")] == ["project.create", "key.create"]
    assert tidegate(audit.app, "list")[0] == 0
    code, out, _ = tidegate(audit.app, "export")
    assert [json.loads(line)["sequence"] for line in out.splitlines()] == [1, 2]
    code, _, _ = tidegate(audit.app, "export", "--output", str(tmp_path / "audit.jsonl"))
    assert (tmp_path / "audit.jsonl").read_text() == out
    lines = (data_dir / "audit.anchor").read_bytes().splitlines(keepends=True)
    (data_dir / "audit.anchor").write_bytes(lines[0] + re.sub(rb'"hash":"..', b'"hash":"00', lines[1]))
    code, _, err = tidegate(audit.app, "verify")
    assert (code, "record 2" in err) == (3, True)
    code, out, _ = tidegate(audit.app, "verify", "--json")
    assert (code, json.loads(out)["finding"]["sequence"]) == (3, 2)


def test_every_command_shows_an_example(tidegate):
    for app, names in ((keys.app, ("create", "bootstrap", "list", "show", "update", "rotate", "revoke")),
                       (audit.app, ("verify", "list", "export"))):  # fmt: skip
        for name in names:
            code, out, _ = tidegate(app, name, "--help")
            assert code == 0
            assert "Example" in out
