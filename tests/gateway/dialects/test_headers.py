"""What ``Accept`` allows."""

from __future__ import annotations

import pytest

from gateway.dialects.headers import is_acceptable

JSON = ("application/json",)


@pytest.mark.parametrize("accept", [
    "*/*", "application/json", "APPLICATION/JSON", "application/*", "text/html, */*;q=0.1", "application/json; q=0.001",
    "text/html;q=0, application/json;charset=utf-8", "*/*;q=0, application/json",
])  # fmt: skip
def test_allowed(accept: str) -> None:
    assert is_acceptable(accept, JSON)


@pytest.mark.parametrize("accept", [
    "text/html", "*/*;q=0", "application/json;q=0", "application/json;q=0.000, */*", "application/*;q=0, */*", "json",
    "", "application/xml", "*/json",
])  # fmt: skip
def test_not_allowed(accept: str) -> None:
    assert not is_acceptable(accept, JSON)


def test_one_of_several_is_enough() -> None:
    assert is_acceptable("application/octet-stream", ("application/json", "application/octet-stream"))
