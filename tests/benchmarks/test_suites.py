"""Suite files, and the command in front of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import environment
from benchmarks import suite as suites
from benchmarks.scenarios import SCENARIOS
from tidegate.benching import parse_slo
from tidegate.commands.bench import app


@pytest.mark.parametrize("name", suites.names())
def test_every_suite_can_be_read_and_run(name: str) -> None:
    suite = suites.read(name)
    assert suite.scenarios
    assert {scenario.kind for scenario in suite.scenarios} <= set(SCENARIOS)


def test_every_kind_of_scenario_is_in_a_suite() -> None:
    used = {scenario.kind for name in suites.names() for scenario in suites.read(name).scenarios}
    assert used == set(SCENARIOS)


def test_the_help_names_every_suite() -> None:
    command = typer.main.get_command(app).commands["run"]
    (argument,) = [parameter for parameter in command.params if parameter.name == "suite"]
    assert set(suites.names()) <= set(re.findall(r"[\w-]+", argument.help))


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("title: t\nscenarios: [{kind: closed_sweep, workload: identity, durations: 3}]", "durations"),
        ("title: t\nscenarios: [{kind: sprint, workload: identity}]", "sprint"),
        ("title: t\nscenarios: [{kind: soak, workload: nonsense}]", "nonsense"),
        ("title: t\nscenarios: [{kind: burst, workload: identity, engine: locust}]", "only closed_sweep"),
        ("scenarios: []", "title"),
        (": : :", "bad.yaml"),
    ],
)
def test_a_bad_suite_is_refused_with_its_reason(tmp_path: Path, text: str, phrase: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(suites.SuiteError, match=phrase):
        suites.read(str(path))


def test_an_unknown_suite_names_the_known_ones() -> None:
    with pytest.raises(suites.SuiteError, match="quick"):
        suites.read("nothing")


def test_quick_shortens_everything() -> None:
    suite = suites.shortened(suites.read("dataplane"), quick=True)
    assert suite.runs == 1
    assert {scenario.users for scenario in suite.scenarios if scenario.kind == "closed_sweep"} == {(1, 64)}
    assert {scenario.duration_s for scenario in suite.scenarios} == {3.0}
    assert all(scenario.warmup_s < scenario.duration_s for scenario in suite.scenarios)


def test_closed_sweeps_can_be_made_by_another_engine_and_nothing_else_can() -> None:
    suite = suites.with_engine(suites.read("dataplane"), "locust")
    assert {scenario.kind for scenario in suite.scenarios if scenario.engine == "locust"} == {"closed_sweep"}


def test_repetitions_can_be_asked_for() -> None:
    assert suites.shortened(suites.read("headline"), runs=3).runs == 3
    assert suites.shortened(suites.read("headline"), duration_s=1).runs == suites.read("headline").runs == 5


@pytest.mark.parametrize(
    ("url", "phrase"),
    [(None, "same host"), ("http://127.0.0.1:8080", "same host"), ("192.0.2.9:8080", "the system is at 192.0.2.9")],
)
def test_the_report_says_where_the_load_comes_from(url: str | None, phrase: str) -> None:
    assert phrase in environment.capture(url)["network"]["load_generator"]


@pytest.mark.parametrize(
    ("text", "percentile", "milliseconds"), [("p95=50ms", 95, 50), ("p99.9=1.5s", 99.9, 1500), (" p50=2ms ", 50, 2)]
)
def test_objectives(text: str, percentile: float, milliseconds: float) -> None:
    found = parse_slo(text)
    assert (found.percentile, found.ms) == (percentile, milliseconds)


@pytest.mark.parametrize("text", ["50ms", "p95", "p0=5ms", "p100=5ms", "p95=5"])
def test_objectives_that_are_none(text: str) -> None:
    with pytest.raises(typer.Exit):
        parse_slo(text)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["run", "nothing"], "no suite"),
        (["run", "batching", "--url", "http://127.0.0.1:1"], "leave out --url"),
        (["run", "quick", "--machine", "mainframe"], "no machine"),
        (["overhead", "--url", "http://127.0.0.1:1"], "both addresses are needed"),
        (["why", "identity", "--url", "http://127.0.0.1:1"], "does not tell"),
        (["tune", "nothing"], "is not built"),
        (["tasks", "--workloads", "digits"], "no ceiling"),
        (["compare", "nowhere", "nowhere"], "nowhere"),
        (["scale", "--keys", "10,1000"], "two sizes are expected"),
        (["scale", "--keys", "many"], "numbers separated by commas"),
        (["journal", "--protocols", "smoke"], "protocols are http, grpc"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], phrase: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert phrase in " ".join(result.output.split())


def test_every_command_has_an_example() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert "Example: tidegate bench" in (command.callback.__doc__ or "")
