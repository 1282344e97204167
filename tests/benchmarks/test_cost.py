"""Dollars per thousand requests."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from benchmarks.cost import Machine, PricesError, cost, machine, read_prices

MACHINE = Machine("a machine", 0.36, "https://example.org", dt.date(2026, 1, 1))


def test_the_formula() -> None:
    found = cost(MACHINE, 100.0)  # 0.36 USD buy 360,000 requests
    assert found is not None
    assert found.per_thousand["100%"] == pytest.approx(0.001)
    assert found.per_thousand["10%"] == pytest.approx(0.01)
    assert found.redundant["100%"] == pytest.approx(0.002)


def test_nothing_served_has_no_price() -> None:
    assert cost(MACHINE, 0.0) is None


def test_every_price_has_a_source_and_a_date() -> None:
    for item in read_prices().machines.values():
        assert item.source.startswith("https://")
        assert item.date <= dt.datetime.now(dt.timezone.utc).date()
        assert item.per_hour > 0


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('[machines.x]\nname="x"\nper_hours=1.0\nsource="s"\ndate=2026-01-01\n')
    with pytest.raises(PricesError, match="per_hour"):
        read_prices(path)


def test_an_unknown_machine_names_the_known_ones() -> None:
    with pytest.raises(PricesError, match="cpu-2"):
        machine(read_prices(), "mainframe")


def test_a_machine_of_ones_own_costs_what_it_is_written_off_in_and_draws(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        '[owned.rack]\nname="x"\ncapital=8760.0\nyears=4\nwatts=500\nper_kwh=0.3\nhosting_per_year=876.0\n'
        'source="an invoice"\ndate=2026-01-01\n'
    )
    assert machine(read_prices(path), "rack").per_hour == pytest.approx(0.25 + 0.15 + 0.1)
