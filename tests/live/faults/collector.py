"""An OpenTelemetry collector for tests: takes OTLP over HTTP, protobuf or JSON, and keeps the spans."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """What of a span is asked about; ids in hex."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]


class Collector:
    """Listens on a free port while the block lasts."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                is_json = "json" in self.headers.get("content-type", "")
                collector.spans += _from_json(json.loads(body)) if is_json else _from_protobuf(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def of(self, trace_id: str) -> list[Span]:
        """The spans of one trace."""
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _from_protobuf(body: bytes) -> list[Span]:
    return [
        Span(
            next((a.value.string_value for a in batch.resource.attributes if a.key == "service.name"), ""),
            span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
            {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes},
        )
        for batch in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in batch.scope_spans
        for span in scope.spans
    ]  # fmt: skip


def _from_json(document: dict[str, Any]) -> list[Span]:
    return [
        Span(
            next(
                (
                    a["value"].get("stringValue", "")
                    for a in batch.get("resource", {}).get("attributes", ())
                    if a["key"] == "service.name"
                ),
                "",
            ),
            span["name"], _hex(span["traceId"]), _hex(span["spanId"]), _hex(span.get("parentSpanId", "")),
            {a["key"]: next(iter(a["value"].values()), None) for a in span.get("attributes", ())},
        )
        for batch in document.get("resourceSpans", ())
        for scope in batch.get("scopeSpans", batch.get("instrumentationLibrarySpans", ()))
        for span in scope["spans"]
    ]  # fmt: skip


def _hex(text: str) -> str:
    """An id as OTLP's JSON has it (hex), or as older exporters wrote it (base64)."""
    if len(text) in {0, 16, 32}:
        return text.lower()
    return base64.b64decode(text).hex()
