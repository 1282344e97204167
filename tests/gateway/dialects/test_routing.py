"""Paths, segment by segment."""

from __future__ import annotations

import pytest

from gateway.dialects.http import Request, Response, Route
from gateway.dialects.routing import Router
from gateway.errors import GatewayError, Malformed, MethodNotAllowed, NotFound
from gateway.types import Call


async def handler(_request: Request, _call: Call) -> Response:
    return Response(200)


class Toy:
    name = "toy"
    routes = (
        Route("GET", "/v2", "index", handler),
        Route("GET", "/v2/models/stats", "stats", handler),
        Route("GET", "/v2/models/{model}", "model", handler),
        Route("POST", "/v2/models/{model}/infer", "infer", handler),
    )

    def encode_error(self, error: GatewayError, call: Call) -> Response:
        return Response(error.status)


ROUTER = Router([Toy()])


def match(method: str, path: str) -> tuple[str, dict[str, str]]:
    _, route, params = ROUTER.match(method, path.encode("latin-1"))
    return route.operation, params


def test_literals_win_over_parameters() -> None:
    assert match("GET", "/v2/models/stats") == ("stats", {})
    assert match("GET", "/v2/models/other") == ("model", {"model": "other"})


def test_an_encoded_slash_stays_in_its_segment() -> None:
    assert match("POST", "/v2/models/org%2Fname/infer") == ("infer", {"model": "org/name"})


def test_unicode_is_decoded() -> None:
    assert match("GET", "/v2/models/%E6%B0%B4") == ("model", {"model": "水"})


NOT_ROUTES = [
    "/",
    "/v3",
    "/v2/",
    "/v2/models",
    "/v2/models/",
    "/v2/models/m/",
    "/v2/models//infer",
    "//v2",
    "/v2/models/m/infer/x",
    "/v2/models/../admin",
    "v2",
]


@pytest.mark.parametrize("path", NOT_ROUTES)
def test_what_is_not_a_route_is_404(path: str) -> None:
    with pytest.raises(NotFound):
        match("POST" if path.endswith("infer") else "GET", path)


def test_dots_are_a_name_like_any_other_never_a_way_up() -> None:
    assert match("GET", "/v2/models/..") == ("model", {"model": ".."})
    assert match("GET", "/v2/models/%2e%2e%2fetc") == ("model", {"model": "../etc"})


def test_methods_that_are_not_there_name_those_that_are() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        match("DELETE", "/v2/models/m")
    assert caught.value.headers == {"Allow": "GET, HEAD"}
    assert match("HEAD", "/v2/models/m")[0] == "model"


@pytest.mark.parametrize("path", [b"/v2/models/%ff", b"/v2/models/\xff", b"/v2/models/" + b"a" * 5000])
def test_paths_that_are_no_text_or_endless_are_400(path: bytes) -> None:
    with pytest.raises(Malformed):
        ROUTER.match("GET", path)


def test_a_route_declared_twice_is_a_defect() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        Router([Toy(), Toy()])
