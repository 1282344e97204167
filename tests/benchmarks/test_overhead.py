"""`bench overhead`: which legs there are, and what each of them says about its parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.overhead import Comparison, Leg, LegResult
from tidegate.commands.bench import app


def _leg(name: str, p99_ms: list[float]) -> LegResult:
    result = LegResult(Leg(name, "http://127.0.0.1"), [10.0] * 3, [1.0] * 3, [5.0] * 3, [])
    result.p99_ms = p99_ms
    return result


def test_the_added_tail_is_said_where_there_are_samples_for_it() -> None:
    nan = float("nan")
    found = Comparison("http", 8, [_leg("triton", [2.0, 2.0, nan]), _leg("gateway", [3.0, nan, nan])])
    assert (found.added_p99_ms(1).value, found.added_p99_ms(1).runs) == (1.0, 1)
    few = Comparison("http", 1, [_leg("triton", [nan] * 3), _leg("gateway", [nan] * 3)])
    assert str(few.added_p99_ms(1)) == "-"
    assert few.to_dict()["legs"][0]["added_p99_ms"] is None


@pytest.mark.live
@pytest.mark.slow
def test_every_leg_tells_what_its_parts_cost() -> None:
    arguments = ["overhead", "--protocols", "http,grpc", "--concurrency", "8", "--rounds", "1", "--leg-seconds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    for item in json.loads(result.stdout):
        legs = {leg["name"]: leg for leg in item["legs"]}
        assert set(legs) == {"triton", "gateway", "bare", "floor"}
        assert not any(leg["faults"] for leg in legs.values()), [leg["fault"] for leg in legs.values()]
        spent = {name: {part: cost["value"] for part, cost in leg["cpu_us"].items()} for name, leg in legs.items()}
        assert set(spent["floor"]) == {"generator"}
        for name in ("triton", "gateway", "bare"):
            assert all(spent[name][part] > 0 for part in ("generator", "triton"))
        for name in ("gateway", "bare"):
            assert spent[name]["gateway"] > 10 * max(1.0, spent["triton"]["gateway"])
        assert np.isfinite(legs["gateway"]["throughput"]["value"])


def test_a_bare_gateway_needs_a_triton_that_is_known() -> None:
    arguments = ["overhead", "--url", "http://127.0.0.1:1", "--triton", "127.0.0.1:2", "--protocols", "http", "--bare"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "--triton-grpc" in done.output
