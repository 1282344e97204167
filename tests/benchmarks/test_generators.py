"""The command behind the choice of the load generator."""

from __future__ import annotations

import json

import pytest

from benchmarks.generators import main


@pytest.mark.slow
def test_both_generators_are_measured_before_the_same_null_server(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--users", "2", "--seconds", "1", "--rounds", "1", "--json"])
    lean, locust = json.loads(capsys.readouterr().out)
    assert (lean["name"], locust["name"]) == ("asyncio and httptools", "Locust, FastHttpUser")
    for found in (lean, locust):
        assert found["requests_per_s"]["value"] > 0
        assert found["cpu_us_per_request"]["value"] > 0
    assert lean["cpu_us_per_request"]["value"] < locust["cpu_us_per_request"]["value"]
