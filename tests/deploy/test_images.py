"""The Dockerfile and the health check of our own images."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import DEPLOY, ROOT

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
HEALTH = DEPLOY / "docker" / "tidegate-health"
TARGETS = {"gateway", "dashboard", "models", "loadtest"}


def stages() -> dict[str, tuple[str, list[str]]]:
    """Stage name → (what it is from, its instructions)."""
    found: dict[str, tuple[str, list[str]]] = {}
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if start := re.match(r"FROM (\S+) AS (\S+)", line):
            found[start.group(2)] = (start.group(1), [])
        elif line and not line.startswith("#") and found:
            list(found.values())[-1][1].append(line)
    return found


def chain(name: str) -> list[str]:
    """Instructions of a stage and of those it is built on, the base first."""
    parent, instructions = stages()[name]
    return [*(chain(parent) if parent in stages() else []), *instructions]


def test_hadolint_finds_nothing(require_tool: Callable[[str], str]) -> None:
    done = subprocess.run([require_tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_builds_targets_that_exist(compose: dict[str, Any]) -> None:
    built = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
    assert built == TARGETS
    assert set(stages()) >= TARGETS


def test_the_base_image_is_pinned() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.1[0-2]\.\d+-slim-\w+$", text, re.M)
    assert {parent for parent, _ in stages().values()} <= {"${PYTHON_IMAGE}", *stages()}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_image_runs_unprivileged_and_says_how_it_is(target: str) -> None:
    instructions = chain(target)
    users = [line for line in instructions if line.startswith("USER ")]
    assert users[-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK ") for line in instructions)
    assert any(line.startswith("CMD [") for line in instructions)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_image_holds_no_build_tools_of_its_own(target: str) -> None:
    assert not [line for line in chain(target) if "pip install" in line]
    assert [line for line in chain(target) if line.startswith("COPY --from=install-")]


def test_what_is_copied_is_allowed_by_the_ignore_file_and_exists() -> None:
    lines = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    for _, instructions in stages().values():
        for line in instructions:
            if line.startswith("COPY ") and "--from=" not in line:
                for source in [part for part in line.split()[1:-1] if not part.startswith("--")]:
                    assert source in allowed, line
                    assert source == "constraints.txt" or (ROOT / source).exists(), line


@pytest.mark.parametrize("path", [".env", ".git/config", ".tidegate/pepper", "model_repository/qa/1/model.onnx"])
def test_secrets_and_builds_stay_out_of_the_context(path: str) -> None:
    ignored = False
    for line in (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and (fnmatch(path, pattern) or path.startswith(f"{pattern}/")):
            ignored = not line.startswith("!")
    assert ignored


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "healthy"), [("/ready", True), ("/not-ready", False)])
def test_health_check_tells_by_its_exit_status(url: str, path: str, healthy: bool) -> None:
    done = subprocess.run([sys.executable, str(HEALTH), url + path], capture_output=True, text=True, timeout=30)
    assert (done.returncode == 0) is healthy


def test_health_check_of_nothing_is_one_line(url: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HEALTH), "http://127.0.0.1:9/"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert HEALTH.stat().st_mode & 0o111, "not executable"
    assert Path(DOCKERFILE).read_text(encoding="utf-8").count("tidegate-health") >= 4
