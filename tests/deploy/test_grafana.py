"""Grafana: dashboards whose every query parses and asks for metrics that exist."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY
from tests.deploy.metric_names import TRITON, gateway_metrics, names_in, recorded

GRAFANA = DEPLOY / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in GRAFANA.glob("dashboards/*.json")}
MACROS = {"$__rate_interval": "5m", "$__range": "1h", "$__interval": "1m", "$model": ".*"}


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def expressions(name: str) -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels(name) for target in panel["targets"]]


def without_macros(expression: str) -> str:
    """The expression with Grafana's variables filled in."""
    for macro, value in MACROS.items():
        expression = expression.replace(macro, value)
    assert "$" not in expression, expression
    return expression


def test_there_are_dashboards_for_the_gateway_and_for_triton() -> None:
    assert set(DASHBOARDS) == {"tidegate", "triton"}
    assert len({board["uid"] for board in DASHBOARDS.values()}) == 2


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_every_expression_is_promql(name: str, require_program: Callable[[str], str], tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": without_macros(expression)}
        for number, (_, expression) in enumerate(expressions(name))
    ]
    assert len(rules) > 10
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": name, "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [require_program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_every_metric_exists(name: str) -> None:
    known = gateway_metrics() | TRITON | recorded()
    for title, expression in expressions(name):
        used = names_in(expression)
        assert used, title
        assert used <= known, f"{title}: {used - known}"


def test_the_gateway_dashboard_shows_every_metric_of_the_gateway() -> None:
    used = {name for _, expression in expressions("tidegate") for name in names_in(expression)}
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in used}
    families = {name for name in gateway_metrics() if not name.endswith(("_bucket", "_sum", "_count", "_created"))}
    assert families <= shown


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_panels_use_the_provisioned_source_and_do_not_overlap(name: str) -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_provisioning_points_at_what_compose_mounts(compose: dict[str, Any]) -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/tidegate.yml").read_text())["providers"]
    mounts = {line.split(":")[1] for line in compose["services"]["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounts
    assert "/etc/grafana/provisioning" in mounts
