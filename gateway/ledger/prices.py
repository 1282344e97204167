"""The price list: what compute time costs, and what a customer is billed."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PICO = 10**12
"""Money is counted in 10⁻¹² USD."""
_DEFAULT_FILE = Path(__file__).with_name("prices.toml")


class PricesError(Exception):
    """A price list that cannot be used; the message names the file and the field."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(_Schema):
    """A machine that models run on."""

    name: str
    source: str
    """Where the price was read."""
    per_hour: float = Field(ge=0, allow_inf_nan=False)
    parallel: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Compute seconds that it gives in one second of wall time (model instances that truly run side by side)."""


class ModelPrice(_Schema):
    """What a model is billed at; the parts add up, and without any the measured cost is billed."""

    hardware: str = "default"
    per_request: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    per_1k_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    per_image: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @property
    def listed(self) -> bool:
        """Whether it has a price of its own."""
        return any(part is not None for part in (self.per_request, self.per_1k_tokens, self.per_image))


class PriceList(_Schema):
    """``prices.toml``."""

    version: str = Field(min_length=1, max_length=64)
    date: dt.date
    currency: str = Field(pattern="^[A-Z]{3}$")
    usd_per_currency_unit: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    hardware: dict[str, Hardware]
    models: dict[str, ModelPrice] = Field(default_factory=dict)

    @field_validator("hardware")
    @classmethod
    def _has_default(cls, value: dict[str, Hardware]) -> dict[str, Hardware]:
        if "default" not in value:
            raise ValueError("must have an entry called default")
        return value


class Prices:
    """A validated price list, ready for use; all amounts in 10⁻¹² USD."""

    def __init__(self, prices: PriceList) -> None:
        self.list = prices
        self.version = prices.version
        self._unit = PICO * prices.usd_per_currency_unit
        self._standard = ModelPrice()
        self._listed = frozenset(name for name, model in prices.models.items() if model.listed)
        for name, model in prices.models.items():
            if model.hardware not in prices.hardware:
                raise PricesError(f"models.{name}.hardware: no hardware called {model.hardware!r}")
        self._per_ns = {
            name: hardware.per_hour * self._unit / 3600e9 / hardware.parallel
            for name, hardware in prices.hardware.items()
        }

    @classmethod
    def load(cls, path: Path | None = None) -> Prices:
        """Read a price list, by default the package's own. Raises :class:`PricesError`."""
        path = path or _DEFAULT_FILE
        try:
            return cls(PriceList.model_validate(msgspec.toml.decode(path.read_bytes())))
        except (OSError, UnicodeDecodeError, msgspec.DecodeError, ValidationError, PricesError) as error:
            raise PricesError(f"{path}: {error}") from error

    def cost(self, model: str, compute_ns: float) -> int:
        """What ``compute_ns`` of a model's compute time cost."""
        price = self.list.models.get(model, self._standard)
        return round(compute_ns * self._per_ns[price.hardware])

    def billed(self, model: str, *, tokens: int, pixels: int, rows: int, cost: int) -> int:
        """What a completed request is billed: its list price, or ``cost``; rows with pixels are images."""
        if model not in self._listed:
            return cost
        price = self.list.models[model]
        amount = price.per_request or 0.0
        amount += (price.per_1k_tokens or 0.0) * tokens / 1000
        amount += (price.per_image or 0.0) * (rows if pixels else 0)
        return round(amount * self._unit)
