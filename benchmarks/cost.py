"""Cost per 1,000 requests, from goodput at the service-level objective.

``price per hour / (3600 x goodput) x 1000``: failed, late and wrong answers are not in the
denominator, idle time is in the price. At less than full utilisation the same machine serves fewer
requests for the same money. A run that missed its objective has no price: it is struck out.
"""

from __future__ import annotations

import datetime as dt
from importlib.resources import files
from pathlib import Path

import msgspec

UTILISATIONS = (1.0, 0.6, 0.3, 0.1)


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine and its price in USD. What an installation pays beside it is 0 unless the list says more."""

    name: str
    per_hour: float
    source: str
    date: dt.date
    beside_per_hour: float = 0.0
    """Database, load balancer and whatever else is paid by the hour, for each machine that works."""
    per_thousand_records: float = 0.0
    """Egress and storage of 1,000 answers and their usage records."""
    peak_machines: int = 1
    """How many machines carry the peak; one more stands by (N+1)."""
    alternative_per_thousand: float | None = None
    """What 1,000 requests cost elsewhere: the break-even utilisation is the one at which they cost as much here."""


class Owned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine of one's own, in USD: what it cost and is written off in, what it draws, where it stands."""

    name: str
    capital: float
    years: float
    watts: float
    per_kwh: float
    source: str
    date: dt.date
    hosting_per_year: float = 0.0

    def machine(self) -> Machine:
        """The same with a price per hour: it is written off by every hour, busy or idle."""
        hours = 365 * 24
        per_hour = (
            self.capital / (self.years * hours) + self.watts / 1000 * self.per_kwh + self.hosting_per_year / hours
        )
        return Machine(self.name, per_hour, self.source, self.date)


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``prices.toml``."""

    machines: dict[str, Machine] = {}
    owned: dict[str, Owned] = {}


class Cost(msgspec.Struct, frozen=True):
    """USD per 1,000 requests, by utilisation in per cent; ``redundant`` with one spare machine at the peak (N+1)."""

    machine: Machine
    goodput: float
    per_thousand: dict[str, float]
    redundant: dict[str, float]
    break_even: float | None = None
    """Utilisation at which the alternative costs as much; above 1: it is cheaper always."""


class PricesError(Exception):
    """The price list cannot be read, or lacks the machine."""


def read_prices(path: Path | None = None) -> Prices:
    """The list at ``path``, or the one that comes with the suite. Raises :class:`PricesError`."""
    try:
        data = path.read_bytes() if path else files("benchmarks").joinpath("prices.toml").read_bytes()
        return msgspec.toml.decode(data, type=Prices)
    except (OSError, msgspec.MsgspecError) as error:
        raise PricesError(f"{path or 'prices.toml'}: {error}") from error


def machine(prices: Prices, name: str) -> Machine:
    """One machine, hired or owned. Raises :class:`PricesError`."""
    known = {**prices.machines, **{key: owned.machine() for key, owned in prices.owned.items()}}
    if name not in known:
        raise PricesError(f"no machine {name!r} in the price list; it has: {', '.join(sorted(known))}")
    return known[name]


def cost(machine_: Machine, goodput: float) -> Cost | None:
    """The cost of ``goodput`` right and timely answers a second; None for none."""
    if goodput <= 0:
        return None
    paid = machine_.per_thousand_records
    full = (machine_.per_hour + machine_.beside_per_hour) / (3600 * goodput) * 1000
    spare = (machine_.peak_machines + 1) / machine_.peak_machines
    other = machine_.alternative_per_thousand
    return Cost(
        machine_,
        goodput,
        {f"{utilisation:.0%}": full / utilisation + paid for utilisation in UTILISATIONS},
        {f"{utilisation:.0%}": spare * full / utilisation + paid for utilisation in UTILISATIONS},
        full / (other - paid) if other is not None and other > paid else None,
    )
