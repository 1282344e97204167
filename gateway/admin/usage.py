"""``/admin/usage``: what was used and what it cost. A key with ``usage:read`` sees its own project, whole."""

import datetime as dt
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse

from gateway.errors import Forbidden, Invalid
from gateway.ledger.export import to_csv, to_json
from gateway.store.database import Store
from gateway.store.usage_reports import GroupBy, latest, parse_day, summary
from gateway.types import Principal

_FORMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {media_type: {} for media_type in ("text/csv", "application/vnd.apache.parquet")}}
}
"""Beside JSON, for the OpenAPI document."""


def create_usage_router(store: Store, authenticate: Callable[..., Any]) -> APIRouter:
    """Routes below ``/usage``.

    ``authenticate`` is a FastAPI dependency that returns the verified :class:`Principal`; the
    application turns :class:`~gateway.errors.GatewayError` into answers.
    """
    router = APIRouter(prefix="/usage", tags=["usage"])
    caller = Annotated[Principal, Depends(authenticate)]

    @router.get("", summary="Usage and cost, summed", responses=_FORMS)
    async def usage(
        principal: caller,
        group_by: GroupBy = "model",
        since: Annotated[str | None, Query(description="First day (UTC): 2026-11-23, today, or 7d.")] = None,
        until: Annotated[str | None, Query(description="Last day (UTC), inclusive.")] = None,
        format: Literal["json", "csv", "parquet"] = "json",  # noqa: A002 - the public name
    ) -> Response:
        project = visible_project(principal)
        today = dt.datetime.now(dt.timezone.utc).date()
        first, last = _day("since", since, today), _day("until", until, today)
        async with store.read() as connection:
            rows = await summary(connection, group_by, since=first, until=last, project=project)
        return _render(rows, format, f"usage-by-{group_by}")

    @router.get("/records", summary="The latest usage records", responses=_FORMS)
    async def records(
        principal: caller,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        model: str | None = None,
        format: Literal["json", "csv", "parquet"] = "json",  # noqa: A002
    ) -> Response:
        project = visible_project(principal)
        async with store.read() as connection:
            rows = await latest(connection, limit, model=model, project=project)
        return _render(rows, format, "usage-records")

    return router


def visible_project(principal: Principal) -> str | None:
    """The project whose usage a principal may read; None: every project's. Raises :class:`Forbidden`."""
    if "keys:admin" in principal.scopes:
        return None
    if "usage:read" in principal.scopes:
        return principal.project
    raise Forbidden("This key may not read usage: it lacks the scope usage:read.")


def _day(name: str, value: str | None, today: dt.date) -> dt.date | None:
    if value is None:
        return None
    try:
        return parse_day(value, today)
    except ValueError as error:
        raise Invalid(f"{name}: {error}", param=name) from error


def _render(rows: list[dict[str, Any]], form: str, name: str) -> Response:
    if form == "json":
        return JSONResponse({"usage": to_json(rows)})
    body, media_type = (to_csv(rows).encode(), "text/csv; charset=utf-8")
    if form == "parquet":
        from gateway.ledger.parquet import to_parquet  # noqa: PLC0415 - large to import, seldom needed

        body, media_type = to_parquet(rows), "application/vnd.apache.parquet"
    headers = {"Content-Disposition": f'attachment; filename="{name}.{form}"'}
    return Response(body, media_type=media_type, headers=headers)
