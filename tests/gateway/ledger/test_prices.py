import pytest

from gateway.ledger.prices import Prices, PricesError

VALID = """
version = "v1"
date = 2026-01-01
currency = "USD"
[hardware.default]
name = "a"
source = "b"
per_hour = 3.6
"""


def load(tmp_path, text):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return Prices.load(path)


def test_the_packages_own_list_is_valid_and_says_where_its_prices_are_from():
    prices = Prices.load()
    assert prices.version
    assert all(hardware.source for hardware in prices.list.hardware.values())
    assert prices.cost("anything", 3600e9) == round(prices.list.hardware["default"].per_hour * 1e12)


def test_compute_time_costs_by_the_hour(tmp_path):
    prices = load(tmp_path, VALID)
    assert prices.cost("m", 1e9) == 10**9  # 0.001 USD a second
    assert prices.billed("m", tokens=1, pixels=0, rows=1, cost=123) == 123


def test_other_hardware_parallel_instances_and_another_currency(tmp_path):
    text = VALID.replace('"USD"', '"EUR"\nusd_per_currency_unit = 1.5')
    text += '[hardware.gpu]\nname = "g"\nsource = "s"\nper_hour = 36\nparallel = 4\n[models.big]\nhardware = "gpu"\n'
    prices = load(tmp_path, text)
    assert prices.cost("small", 1e9) == 1_500_000_000
    assert prices.cost("big", 1e9) == 3_750_000_000


def test_list_prices_add_up(tmp_path):
    prices = load(tmp_path, VALID + "[models.m]\nper_request = 0.5\nper_1k_tokens = 2.0\nper_image = 0.25\n")
    assert prices.billed("m", tokens=250, pixels=0, rows=9, cost=1) == 10**12
    assert prices.billed("m", tokens=0, pixels=100, rows=2, cost=1) == 10**12


def test_a_price_of_nothing_is_a_price(tmp_path):
    assert load(tmp_path, VALID + "[models.m]\nper_request = 0\n").billed("m", tokens=1, pixels=1, rows=1, cost=9) == 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (VALID.replace("per_hour = 3.6", "per_hour = 3.6\nper_minute = 1"), "per_minute"),
        (VALID + "[models.m]\nper_token = 1\n", "per_token"),
        (VALID.replace("3.6", "-1"), "per_hour"),
        (VALID.replace("3.6", "nan"), "per_hour"),
        (VALID.replace("hardware.default", "hardware.other"), "default"),
        (VALID + '[models.m]\nhardware = "missing"\n', "missing"),
        (VALID.replace('"USD"', '"dollars"'), "currency"),
        (VALID.replace('version = "v1"', ""), "version"),
        ("version = ", "prices.toml"),
    ],
)
def test_what_is_wrong_is_refused_and_named(tmp_path, wrong, named):
    with pytest.raises(PricesError, match=named):
        load(tmp_path, wrong)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PricesError, match=r"nowhere\.toml"):
        Prices.load(tmp_path / "nowhere.toml")
