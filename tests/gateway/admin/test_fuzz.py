"""Every parameter and field of every route, given what it does not expect, on both databases: never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy.exc import DBAPIError

from gateway.admin.application import create_application
from gateway.errors import Invalid

TEXTS = ("\0", "web\0", "x" * 5000, "\u202e\r\n", "9" * 40, "2026-02-30", "99999d")
VALUES = ("\0", "\ud800", "x" * 5000, "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", None, True, 2**64,
          1e308, ["\0"], ["\udfff"], {"\0": 1})  # fmt: skip
JSON = {"content-type": "application/json"}
NAMES = ("\0", "\ud800", "x" * 5000)
"""Of fields that there are not."""
KNOWN = {"project": "web", "name": "web", "organisation": "acme", "limit_usd": 1, "level": "project", "period": "day"}
"""What leads a request past the first check, to the field under trial."""


def parameters(operation: dict[str, Any], place: str) -> list[str]:
    return [one["name"] for one in operation.get("parameters", ()) if one["in"] == place]


def fields(document: dict[str, Any], operation: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of a body's fields, and of those it needs."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return [], []
    schema = document["components"]["schemas"][content["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    return list(schema["properties"]), schema.get("required", [])


def requests(document: dict[str, Any], key_id: str) -> Iterator[tuple[str, str, bytes | None]]:
    """Method, target and body of each request; a revocation comes last, or there would be no key to try."""
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    operations.sort(key=lambda item: item[1] == "delete" or item[0].endswith("/revoke"))
    for path, method, operation in operations:
        names = parameters(operation, "path")
        known = {name: KNOWN.get(name, key_id) for name in names}
        all_fields, needed = fields(document, operation)
        base = {name: KNOWN[name] for name in needed}
        target = path.format(**known)
        for name in names:
            for text in ("%00", "x" * 1000, "'--"):
                yield method, path.format(**known | {name: text}), json.dumps(base).encode() if all_fields else None
        for name in parameters(operation, "query"):
            for text in TEXTS:
                yield method, f"{target}?{name}={quote(text, safe='')}", None
        for name in all_fields:
            for value in VALUES:
                yield method, target, json.dumps(base | {name: value}).encode()
        for name in NAMES if all_fields else ():
            yield method, target, json.dumps(base | {name: 1}).encode()


async def test_nothing_that_a_caller_sends_is_a_defect(operator, make_key):
    key_id = (await make_key("web", organisation="acme")).key.key_id
    document = (await operator.get("/admin/openapi.json")).json()
    tried = 0
    for method, target, body in requests(document, key_id):
        headers = JSON if body is not None else {}
        answer = await operator.request(method, target, content=body, headers=headers)
        assert answer.status_code < 500, (method, target, body, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", (method, target, body)
        tried += 1
    assert tried > 400
    assert (await operator.get("/admin/keys")).status_code == 200


@pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True)
async def test_nul_is_the_callers_to_mend_on_every_database(operator):
    for path, name in (
        ("/admin/keys?project=%00", "project"), ("/admin/keys?after=%00", "after"),
        ("/admin/projects?after=a%00", "after"), ("/admin/usage/records?model=%00", "model"),
        ("/admin/audit?nothing=%00", "nothing"),
    ):  # fmt: skip
        answer = await operator.get(path)
        assert (answer.status_code, answer.json()["param"]) == (422, name)
    for body in ({"project": "a\0"}, {"project": "web", "label": "\0"}, {"project": "web", "models": ["a", "\0"]}):
        answer = await operator.post("/admin/keys", content=json.dumps(body), headers=JSON)
        assert (answer.status_code, answer.json()["param"]) == (422, list(body)[-1])


async def test_what_the_database_alone_refuses_is_the_callers(store, access):
    class Refused(Exception):
        sqlstate = "22021"

    handler = create_application(store, access).exception_handlers[DBAPIError]
    request = type("Request", (), {"state": type("State", (), {"actor": type("Actor", (), {"request_id": "x"})})})
    answer = await handler(request, DBAPIError("SELECT", {}, Refused()))
    assert answer.status_code == Invalid.status
    Refused.sqlstate = "42P01"
    with pytest.raises(DBAPIError):
        await handler(request, DBAPIError("SELECT", {}, Refused()))
