"""Prometheus: configuration, rules and their tests, read by the real promtool."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, ROOT
from tests.deploy.metric_names import TRITON, gateway_metrics, names_in, recorded

PROMETHEUS = DEPLOY / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules" / "tidegate.yml").read_text(encoding="utf-8"))
TESTS = yaml.safe_load((PROMETHEUS / "tests" / "tidegate_test.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def promtool(program: str, *arguments: str | Path) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_configuration_and_the_rules_that_it_names(require_program: Callable[[str], str]) -> None:
    said = promtool(require_program("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    assert "1 rule files found" in said


def test_rules_do_what_their_tests_say(require_program: Callable[[str], str]) -> None:
    promtool(require_program("promtool"), "test", "rules", PROMETHEUS / "tests" / "tidegate_test.yml")


def test_a_rule_test_can_fail(require_program: Callable[[str], str], tmp_path: Path) -> None:
    changed = (PROMETHEUS / "rules" / "tidegate.yml").read_text(encoding="utf-8").replace("> 0.05", "> 0.5")
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "rules" / "tidegate.yml").write_text(changed, encoding="utf-8")
    test = tmp_path / "tests" / "tidegate_test.yml"
    test.write_bytes((PROMETHEUS / "tests" / "tidegate_test.yml").read_bytes())
    done = subprocess.run(
        [require_program("promtool"), "test", "rules", test], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "HighErrorRatio" in done.stdout + done.stderr


def test_every_alert_has_a_test_that_fires_it() -> None:
    fired = {
        check["alertname"]
        for test in TESTS["tests"]
        for check in test.get("alert_rule_test", [])
        if check["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_every_metric_of_the_rules_exists() -> None:
    used = {name for group in RULES["groups"] for rule in group["rules"] for name in names_in(rule["expr"])}
    assert len(used) > 10
    assert used - gateway_metrics() - TRITON - recorded() == {"up"}


def test_targets_are_services_of_the_compose_file(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["job_name"]: job["static_configs"][0]["targets"][0] for job in config["scrape_configs"]}
    assert targets["tidegate"] == "gateway:8082"
    assert targets["triton"] == "triton:8002"
    shared = set(compose["services"]["prometheus"]["networks"])
    for name in ("gateway", "triton"):
        assert shared & set(compose["services"][name]["networks"])
