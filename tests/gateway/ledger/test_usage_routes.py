"""``/admin/usage`` over HTTP, on a store with two projects."""

import csv
import io

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.admin.usage import create_usage_router
from gateway.errors import GatewayError
from gateway.store.usage import write
from gateway.types import Principal
from tests.gateway.ledger.support import make_record

OWN = {"scopes": "usage:read"}
ALL = {"scopes": "keys:admin"}


@pytest.fixture
async def client(store):
    """A client whose ``scopes`` header is who it is; its project is ``a``."""

    def authenticate(request: Request) -> Principal:
        return Principal("key", "a", "organisation", frozenset(request.headers["scopes"].split()))

    def answer(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, GatewayError)
        return JSONResponse({"error": error.message, "param": error.param}, error.status)

    app = FastAPI()
    app.include_router(create_usage_router(store, authenticate), prefix="/admin")
    app.add_exception_handler(GatewayError, answer)
    async with store.write() as connection:
        await write(
            connection,
            [
                make_record(project="a", key_id="k1", model="=cmd()", tokens=5, cost_pico_usd=570),
                make_record(project="a", key_id="k1", model="digits", pixels=784),
                make_record(project="b", key_id="k2", model="digits", tokens=7),
            ],
        )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def get(client, query="", headers=OWN):
    response = await client.get(f"/admin/usage{query}", headers=headers)
    assert response.status_code == 200, response.text
    return response


async def test_a_user_sees_the_own_project_and_an_administrator_all(client):
    own = (await get(client, "?group_by=project")).json()["usage"]
    assert [(row["project"], row["requests"], row["tokens"]) for row in own] == [("a", 2, 5)]
    everything = (await get(client, "?group_by=project", ALL)).json()["usage"]
    assert [row["project"] for row in everything] == ["a", "b"]
    assert [row["key"] for row in (await get(client, "?group_by=key", ALL)).json()["usage"]] == ["k1", "k2"]


@pytest.mark.parametrize("path", ["", "/records"])
async def test_without_the_scope_it_is_forbidden(client, path):
    response = await client.get(f"/admin/usage{path}", headers={"scopes": "infer audit:read"})
    assert response.status_code == 403
    assert "usage:read" in response.json()["error"]


async def test_the_days_asked_for(client):
    today = (await get(client, "?group_by=day&since=today")).json()["usage"]
    assert [row["requests"] for row in today] == [2]
    assert (await get(client, "?until=1d")).json() == {"usage": []}
    response = await client.get("/admin/usage?since=soon", headers=OWN)
    assert (response.status_code, response.json()["param"]) == (422, "since")


async def test_csv_is_safe_to_open(client):
    response = await get(client, "?format=csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="usage-by-model.csv"'
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["model"] for row in rows] == ["'=cmd()", "digits"]
    assert rows[0]["cost_usd"] == "0.000000000570"


async def test_parquet(client):
    table = pq.read_table(pa.BufferReader((await get(client, "?format=parquet")).content))
    assert table.column("pixels").to_pylist() == [0, 784]


async def test_records_of_the_own_project_newest_first(client):
    rows = (await get(client, "/records?limit=10")).json()["usage"]
    assert [row["model"] for row in rows] == ["digits", "=cmd()"]
    rows = (await get(client, "/records?model=digits", ALL)).json()["usage"]
    assert [row["project"] for row in rows] == ["b", "a"]
    assert (await client.get("/admin/usage/records?limit=0", headers=OWN)).status_code == 422
