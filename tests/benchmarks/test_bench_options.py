"""What the options of `tidegate bench` become."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.suite import Engine
from tidegate import bench_reports
from tidegate.bench_reports import RunOptions
from tidegate.commands.bench import app


@pytest.mark.parametrize("engine", Engine.__args__)  # type: ignore[attr-defined]
def test_every_option_of_run_reaches_the_suite(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(bench_reports, "run_suite", found.append)
    command = "run tasks --out o --duration 2 --runs 3 --quick --no-calibrate --machine m --seed 7 --model-repository r"
    done = CliRunner().invoke(app, [*command.split(), "--prices", "p", "--tenant-key", "t", "--engine", engine])
    assert done.exit_code == 0, done.output
    (options,) = found
    assert isinstance(options, RunOptions)
    assert (options.suite, str(options.out), options.duration, options.runs) == ("tasks", "o", 2.0, 3)
    assert (options.quick, options.calibrate, options.machine, options.seed) == (True, False, "m", 7)
    assert (str(options.prices), str(options.repository), options.tenant_keys) == ("p", "r", ("t",))
    assert options.engine == engine


@pytest.mark.parametrize("wrong", [["--keys", "1000,2000,3000"], ["--rows", "100000"]])
def test_scale_cuts_no_list_to_the_length_of_the_other(wrong: list[str]) -> None:
    done = CliRunner().invoke(app, ["scale", *wrong])
    assert done.exit_code == 2
    assert "two numbers of keys and two of records" in done.output
