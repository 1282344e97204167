"""Spans of calls, exported over OTLP/HTTP: a call continues its client's trace, and Triton's spans continue
the call's. Needs the extra ``otel``; nothing of it is imported unless an endpoint is set.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

from gateway.types import Call

if TYPE_CHECKING:
    from opentelemetry.context import Context

TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
"""W3C Trace Context's header: version, trace id, parent id, flags."""
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 3.0


class TracingError(Exception):
    """Spans cannot be exported; one line for the operator."""


class Tracing:
    """One exporter of one process. ``begin`` and ``finished`` are called once for each call."""

    def __init__(self, endpoint: str, *, ratio: float = 1.0, release: str = "0") -> None:
        """``endpoint`` is the collector's base URL; ``ratio`` the share of calls that begin a trace of their own.

        Raises :class:`TracingError` where the packages are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415
        except ImportError as error:
            raise TracingError("TIDEGATE_OTLP_ENDPOINT needs OpenTelemetry: pip install 'tidegate[otel]'") from error
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "tidegate", "service.version": release}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tidegate", release)

    def begin(self, call: Call) -> None:
        """Open ``call``'s span; what goes upstream for it carries this span's context from now on."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        began = time.time_ns() - (time.monotonic_ns() - call.received_ns)
        span = self._tracer.start_span(call.operation, _parent(call), SpanKind.SERVER, start_time=began)
        call.span = span
        context = span.get_span_context()
        if context.trace_flags.sampled:
            call.trace_parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def finished(self, call: Call, code: int, _duration_s: float) -> None:
        """Close it with what became of the call: never a key, never a payload."""
        span: Any = call.span
        if span is None:
            return
        call.span = None
        if span.is_recording():
            attributes: dict[str, Any] = {
                "http.response.status_code": code,
                "tidegate.dialect": call.dialect,
                "tidegate.request_id": call.request_id,
                "tidegate.rows": call.units.rows,
            }
            if call.model:
                attributes |= {"tidegate.model": call.model, "tidegate.usage_id": call.usage_id}
            if call.principal is not None:
                attributes["tidegate.project"] = call.principal.project
            for stage, nanoseconds in call.stages.items():
                attributes[f"tidegate.stage.{stage}_ms"] = nanoseconds / 1e6
            span.set_attributes(attributes)
            if code >= 500:
                from opentelemetry.trace import StatusCode  # noqa: PLC0415

                span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Export what is left; blocks for some seconds if the collector does not answer, and then gives up."""
        # A daemon: the exporter tries again for longer than an operator who stops the gateway wants to wait.
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_CLOSE_TIMEOUT_S)


def _parent(call: Call) -> Context | None:
    """The client's span, if it sent a well-formed one."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context  # noqa: PLC0415

    found = TRACE_PARENT.fullmatch(call.trace_parent or "")
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return set_span_in_context(NonRecordingSpan(SpanContext(trace_id, span_id, True, TraceFlags(flags))))
