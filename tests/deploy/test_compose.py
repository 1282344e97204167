"""docker-compose.yml: valid, pinned, closed, without default passwords."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dashboard.settings import Settings
from gateway.settings import unknown_variables
from tests.deploy.conftest import DEPLOY, PASSWORDS, ROOT, run_compose

PUBLISHED = {"gateway", "dashboard", "prometheus", "grafana", "locust-master"}
ONE_SHOT = {"models"}
WITHOUT_LISTENER = {"locust-worker"}


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/compose.gpu.yml"])
def test_file_matches_the_schema_of_the_compose_specification(require_tool: Callable[[str], str], file: str) -> None:
    checker = require_tool("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", str(ROOT / file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_docker_compose_reads_it_with_every_profile_and_with_gpus(
    require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    done = run_compose(
        require_tool("docker-compose"), "-f", "docker-compose.yml", "-f", "deploy/compose.gpu.yml",
        "--profile", "*", "config", "--quiet", environment=PASSWORDS, folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", sorted(PASSWORDS))
def test_it_refuses_to_start_without_a_password(
    require_tool: Callable[[str], str], tmp_path: Path, missing: str
) -> None:
    environment = {name: value for name, value in PASSWORDS.items() if name != missing}
    done = run_compose(require_tool("docker-compose"), "config", "--quiet", environment=environment, folder=tmp_path)
    assert done.returncode != 0
    assert f"{missing} is missing a value: set it in .env" in done.stderr


def test_no_password_stands_in_the_file(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for line in text.splitlines():
        found = re.match(r"\s*(\w*(?:PASSWORD|SECRET|TOKEN|AUTH)): (.+)", line)
        assert found is None or (found.group(2).startswith("${") and ":?" in found.group(2)), line
    example = (DEPLOY / "env.example").read_text(encoding="utf-8")
    for name in PASSWORDS:
        assert f"\n{name}=\n" in f"\n{example}", f"{name} has a value in env.example"


def test_env_example_names_every_variable_of_the_file() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    named = set(re.findall(r"^#?(\w+)=", (DEPLOY / "env.example").read_text(encoding="utf-8"), re.M))
    assert used == named


def test_images_are_pinned_by_version(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        _, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']}"


def test_triton_is_not_published_and_reaches_no_outside(resolved: dict[str, Any]) -> None:
    triton = resolved["services"]["triton"]
    assert not triton.get("ports")
    assert triton.get("network_mode") is None
    assert all(resolved["networks"][network]["internal"] for network in triton["networks"])
    assert "--model-control-mode=explicit" in triton["command"]
    (models,) = triton["volumes"]
    assert models["target"] == "/models"
    assert models["read_only"]


def test_only_what_people_open_is_published_and_only_on_loopback(resolved: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in resolved["services"].items() if service.get("ports")}
    assert set(published) == PUBLISHED
    for ports in published.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in ports)


def test_state_is_out_of_reach(resolved: dict[str, Any]) -> None:
    assert set(resolved["services"]["postgres"]["networks"]) == {"data"}
    assert set(resolved["services"]["valkey"]["networks"]) == {"data"}
    assert resolved["networks"]["data"]["internal"]
    assert resolved["networks"]["serving"]["internal"]
    reach = {name for name, service in resolved["services"].items() if "data" in service["networks"]}
    assert reach == {"gateway", "postgres", "valkey"}


def test_every_service_is_hardened(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name


def test_every_service_that_listens_has_a_health_check(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        check = service["healthcheck"]
        if name in ONE_SHOT | WITHOUT_LISTENER:
            assert check.get("disable"), name
        else:
            assert check["test"][0] in {"CMD", "CMD-SHELL"}, name


def test_who_waits_waits_for_health(resolved: dict[str, Any]) -> None:
    for name, service in resolved["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == "service_healthy", f"{name} -> {other}"


def test_profiles(compose: dict[str, Any]) -> None:
    profiles = {name: service["profiles"] for name, service in compose["services"].items() if "profiles" in service}
    assert profiles == {"models": ["build"], "locust-master": ["loadtest"], "locust-worker": ["loadtest"]}


def test_every_mounted_file_exists(resolved: dict[str, Any]) -> None:
    for service in resolved["services"].values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), volume["source"]


def test_settings_given_to_the_gateway_are_settings(compose: dict[str, Any]) -> None:
    environment = compose["services"]["gateway"]["environment"]
    assert unknown_variables(dict.fromkeys(environment, "")) == []


def test_settings_given_to_the_dashboard_are_settings(resolved: dict[str, Any]) -> None:
    settings = Settings.from_environment(resolved["services"]["dashboard"]["environment"])
    assert settings.gateway_url == "http://gateway:8080"
    assert settings.public_url == "http://127.0.0.1:8080"
    assert settings.key_file is None
