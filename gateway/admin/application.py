"""The admin application: keys, tenants, limits, budgets, audit and usage below ``/admin``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from gateway.access.access import Access
from gateway.admin.audit import create_audit_router
from gateway.admin.caller import get_usage_reader
from gateway.admin.guard import PREFIX, Guard, problem
from gateway.admin.keys import create_keys_router
from gateway.admin.tenants import create_policy_router, create_tenants_router
from gateway.admin.usage import create_usage_router
from gateway.errors import ClientError, GatewayError, Internal, Invalid, Malformed, MethodNotAllowed, NotFound
from gateway.store.database import Store

_DATA_EXCEPTION = "22"
"""Class of SQLSTATE."""
_TEXT = {"type": "string"}
_PROBLEM: dict[str, Any] = {
    "application/problem+json": {
        "schema": {
            "type": "object",
            "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
            "properties": {
                **dict.fromkeys(("type", "title", "detail", "instance", "code", "request_id", "param"), _TEXT),
                "status": {"type": "integer"},
                "violated-policies": {"type": "array", "items": _TEXT},
            },
        }
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase, "content": _PROBLEM}
    for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 503)
}
"""What every route may answer besides, for the OpenAPI document."""


def create_admin(store: Store, access: Access, *, release: str = "0") -> Guard:
    """Return the ASGI application for every path below ``/admin``, its guard in front."""
    return Guard(create_application(store, access, release=release), access.authenticator)


def create_application(store: Store, access: Access, *, release: str = "0") -> FastAPI:
    """Return what stands behind the guard."""
    app = FastAPI(
        title="Tidegate administration",
        version=release,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    routers = [
        create_keys_router(access.keys),
        create_tenants_router(access.tenants),
        create_policy_router(access.policies, access.budgets, access.keys, access.tenants),
        create_audit_router(access.audit),
        create_usage_router(store, get_usage_reader),
    ]
    parent = APIRouter(prefix=PREFIX)
    for router in routers:
        parent.include_router(router)
    app.include_router(parent, responses={**PROBLEMS})
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DBAPIError, _data_error)
    app.add_exception_handler(Exception, _defect)
    return app


async def _gateway_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, GatewayError):
        raise error
    return _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return _answer(request, Malformed("The body is not JSON."))
    place = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    place = place[:100].encode("ascii", "backslashreplace").decode()  # half a surrogate pair cannot be sent back
    return _answer(request, Invalid(f"{place}: {first['msg']}", param=place))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    known: dict[int, ClientError] = {
        400: Malformed("The request cannot be read."),
        404: NotFound("There is no such route."),
        405: MethodNotAllowed("The route does not have this method.", headers={"Allow": _allowed(request)}),
    }
    return _answer(request, known.get(error.status_code) or Malformed("The request cannot be read."))


async def _data_error(request: Request, error: Exception) -> JSONResponse:
    """What the database takes for no value of its type is the caller's; the rest is a defect."""
    if not isinstance(error, DBAPIError) or not str(getattr(error.orig, "sqlstate", "")).startswith(_DATA_EXCEPTION):
        raise error
    return _answer(request, Invalid("The store cannot hold a value of this request."))


def _allowed(request: Request) -> str:
    """The methods of all routes with this path; Starlette names those of the first alone."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


async def _defect(request: Request, _error: Exception) -> JSONResponse:
    return _answer(request, Internal("Internal error."))  # the guard logs it


def _answer(request: Request, error: GatewayError) -> JSONResponse:
    status, body, headers = problem(error, request.state.actor.request_id)
    return JSONResponse(body, status, headers, media_type="application/problem+json")
