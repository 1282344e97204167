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
_COMMON = {
    "400": "Malformed request",
    "404": "No such route or model",
    "405": "Method not allowed",
    "406": "Not acceptable",
    "408": "The body did not arrive in time",
    "413": "Body too large",
    "415": "Unsupported media type or encoding",
    "422": "Well-formed but invalid",
    "501": "Not implemented for this model",
    "502": "The inference server broke off",
    "503": "Not ready or overloaded; see Retry-After",
    "504": "Deadline exceeded",
}
_WITH_KEY = {
    "401": "No valid key",
    "402": "Budget exceeded",
    "403": "The key lacks the right",
    "429": "Rate limited; see Retry-After",
}


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
        "responses": _responses(route),
    }
    names = re.findall(r"{(\w+)}", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.method == "POST" and route.request_schema is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {
                media: {"schema": route.request_schema if media == "application/json" else _BINARY}
                for media in route.request_media_types
            },
        }
    operation["security"] = [] if route.scope is None else [{"bearer": []}, {"apiKey": []}]
    return operation


def _responses(route: Route) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer"}
    if route.response_schema is not None:
        answer["content"] = {"application/json": {"schema": route.response_schema}}
    texts = dict(_COMMON)
    if route.scope is not None:
        texts |= _WITH_KEY
    return {"200": answer} | {code: {"description": text} for code, text in sorted(texts.items())}


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
