"""The OpenAPI 3.1 document, made from the dialects' own routes, and a page that shows it without
JavaScript and without anything from another host.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from gateway.dialects.http import Dialect, Route

_BINARY = {"type": "string", "format": "binary"}
_EVERY = {
    "400": "Malformed request",
    "404": "No such route or model",
    "406": "Nothing that Accept allows can be produced",
    "408": "The request did not arrive in time",
    "431": "The headers are too large",
    "503": "Not ready or overloaded; see Retry-After",
}
_WITH_KEY = {
    "401": "No valid key",
    "403": "The key lacks the right",
    "429": "Rate limited; see Retry-After",
    "502": "The inference server broke off",
    "504": "Deadline exceeded",
}
_WITH_BODY = {
    "402": "Budget exceeded",
    "413": "Body too large",
    "415": "Unsupported media type or encoding",
    "422": "Well-formed but invalid",
    "501": "Not implemented for this model",
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "The client's own name for this request. Sent again under the same name, it gets the same answer, with "
        "Idempotent-Replayed: true, and is neither executed nor billed again."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
}
_REQUEST_ID: dict[str, Any] = {
    "X-Request-Id": {
        "description": "The caller's own if it sent an acceptable one, else the gateway's.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }
}
_WAIT = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"}}}


def document(dialects: Iterable[Dialect], version: str) -> dict[str, Any]:
    """The document for ``dialects``."""
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for route in dialect.routes:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(dialect, route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate",
            "version": version,
            "description": "Models as a service: one authenticated, metered gateway in front of Triton.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
        },
    }


def _operation(dialect: Dialect, route: Route) -> dict[str, Any]:
    name = re.sub(r"[^a-z0-9]+", "_", f"{route.method} {route.path}".lower()).strip("_")
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": route.summary,
        "tags": list(route.tags or (dialect.name,)),
        "responses": _responses(dialect, route),
    }
    names = re.findall(r"{(\w+)}", route.path)
    parameters = [_path_parameter(name, route.path_example.get(name)) for name in names]
    if _honours_key(route):
        parameters.append(_IDEMPOTENCY_KEY)
    if parameters:
        operation["parameters"] = parameters
    if route.request_schema is not None:
        operation["requestBody"] = {
            "required": route.request_required,
            "content": {media: _request_content(route, media) for media in route.request_media_types},
        }
    operation["security"] = [] if route.scope is None else [{"bearer": []}, {"apiKey": []}]
    return operation


def _honours_key(route: Route) -> bool:
    return route.takes_idempotency_key and not route.streams


def _path_parameter(name: str, example: str | None) -> dict[str, Any]:
    parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return parameter if example is None else {**parameter, "example": example}


def _request_content(route: Route, media: str) -> dict[str, Any]:
    if media != "application/json":
        return {"schema": _BINARY}
    content: dict[str, Any] = {"schema": route.request_schema}
    return content if route.example is None else {**content, "example": route.example}


def _responses(dialect: Dialect, route: Route) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer", "headers": _REQUEST_ID}
    if route.response_media_types:
        answer["content"] = {media: {"schema": _response_schema(route, media)} for media in route.response_media_types}
    texts = dict(_EVERY)
    if route.scope is not None:
        texts |= _WITH_KEY
    if route.request_schema is not None:
        texts |= _WITH_BODY
    if _honours_key(route):
        texts["409"] = "A request with this Idempotency-Key is in progress, or its answer is lost"
    failures = {code: _failure(dialect, route, code, text) for code, text in sorted(texts.items())}
    return {"200": answer} | failures


def _response_schema(route: Route, media: str) -> dict[str, Any]:
    if media == "application/json":
        return route.response_schema or {}
    if media == "text/event-stream":
        return {"description": "The data of each event is one answer, or an error, which is the last."}
    return {"type": "string"} if media.startswith("text/") else _BINARY


def _failure(dialect: Dialect, route: Route, code: str, text: str) -> dict[str, Any]:
    failure: dict[str, Any] = {"description": text, "headers": _REQUEST_ID}
    schema = route.failures.get(int(code), dialect.error_schema)
    if schema is not None:
        failure["content"] = {"application/json": {"schema": schema}}
    if code == "429" or (code == "503" and int(code) not in route.failures):
        failure["headers"] = _REQUEST_ID | _WAIT
    return failure


def page(specification: dict[str, Any]) -> bytes:
    """The document as HTML."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in specification["paths"].items():
        for method, operation in operations.items():
            locked = "" if not operation["security"] else " <span class=key>key</span>"
            codes = ", ".join(operation["responses"])
            media = ", ".join(operation.get("requestBody", {}).get("content", {}))
            body = f"<p>Body: {html.escape(media)}</p>" if media else ""
            by_tag.setdefault(operation["tags"][0], []).append(
                f"<details><summary><b class={method}>{method.upper()}</b> <code>{html.escape(path)}</code> "
                f"{html.escape(operation['summary'])}{locked}</summary>{body}<p>Answers: {codes}</p></details>"
            )
    sections = "".join(f"<h2>{html.escape(tag)}</h2>{''.join(rows)}" for tag, rows in by_tag.items())
    info = specification["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{info['title']} API</title><style>{_CSS}</style><h1>{info['title']} {info['version']}</h1>"
        f"<p>{html.escape(info['description'])} The same as data: <a href=openapi.json>openapi.json</a>. "
        "Send the key as <code>Authorization: Bearer …</code> or <code>X-API-Key: …</code>.</p>"
        f"{sections}</html>"
    ).encode()


_CSS = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#1b2733;background:#fff}"
    "details{border:1px solid #d5dde5;border-radius:6px;margin:.4rem 0;padding:.4rem .8rem}summary{cursor:pointer}"
    "b{display:inline-block;min-width:3.5rem}.get{color:#0b6e4f}.post{color:#1d4ed8}code{font-size:.95em}"
    ".key{font-size:.75em;border:1px solid #b45309;color:#b45309;border-radius:4px;padding:0 .3em}"
    "@media(prefers-color-scheme:dark){body{color:#e5ecf3;background:#10161d}details{border-color:#2c3946}"
    ".get{color:#4ade80}.post{color:#93c5fd}a{color:#93c5fd}}"
)
