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
    """A machine and its price in USD."""

    name: str
    per_hour: float
    source: str
    date: dt.date


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``prices.toml``."""

    machines: dict[str, Machine]


class Cost(msgspec.Struct, frozen=True):
    """USD per 1,000 requests, by utilisation in per cent; with one spare machine (N+1) beside one that works."""

    machine: Machine
    goodput: float
    per_thousand: dict[str, float]
    redundant: dict[str, float]


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
    """One machine. Raises :class:`PricesError`."""
    if name not in prices.machines:
        raise PricesError(f"no machine {name!r} in the price list; it has: {', '.join(sorted(prices.machines))}")
    return prices.machines[name]


def cost(machine_: Machine, goodput: float) -> Cost | None:
    """The cost of ``goodput`` right and timely answers a second; None for none."""
    if goodput <= 0:
        return None
    full = machine_.per_hour / (3600 * goodput) * 1000
    per_thousand = {f"{utilisation:.0%}": full / utilisation for utilisation in UTILISATIONS}
    return Cost(machine_, goodput, per_thousand, {name: 2 * value for name, value in per_thousand.items()})
