"""OpenTelemetry traces of requests: spans are made where something ends, never for a token.

W3C trace context (https://www.w3.org/TR/trace-context/) comes in with a request's `traceparent` and
goes on to workers in the same form. OpenTelemetry is imported only where traces are on.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from baton.protos.clock import Clock, SystemClock
from baton.protos.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

Attributes = Mapping[str, str | int | float | bool]

_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}


class Span:
    """Something that has begun. Times are of the tracing's clock; `end` exactly once."""

    __slots__ = ("_span", "_tracing", "traceparent")

    def __init__(self, tracing: Tracing, span: OtelSpan) -> None:
        self._tracing = tracing
        self._span = span
        context = span.get_span_context()
        # For those who work on it elsewhere: their spans become children of this one.
        self.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        )

    def child(self, name: str, start_s: float, end_s: float, attributes: Attributes) -> None:
        """A part of it that is over."""
        part = self._tracing.begin(name, self.traceparent, start_s)
        part.end(attributes, end_s)

    def end(self, attributes: Attributes, end_s: float | None = None, *, error: str = "") -> None:
        """Over, now or at `end_s`; with `error`, an error's code, it has failed."""
        span = self._span
        if span.is_recording():
            for key, value in attributes.items():
                span.set_attribute(f"baton.{key}", value)
            if error:
                self._tracing.failed(span, error)
        span.end(None if end_s is None else self._tracing.wall_ns(end_s))


class Tracing:
    """One process's spans, sent by a thread of OpenTelemetry's in batches; a full queue drops.

    Exporter, sampler, limits and resource are OpenTelemetry's OTEL_* environment variables.
    `service` is the name where those give none, `instance` this process among its like.
    """

    def __init__(self, service: str, instance: str, *, clock: Clock | None = None) -> None:
        check_tracing()
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        found = {"service.instance.id": instance}
        if "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            found["service.name"] = os.environ.get("OTEL_SERVICE_NAME") or service
        self._clock = clock or SystemClock()
        self._provider: TracerProvider = TracerProvider(
            resource=Resource.create(found), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer("baton")

    def begin(self, name: str, traceparent: str, start_s: float) -> Span:
        """A span under `traceparent`; without a valid one it begins a trace of its own."""
        return Span(
            self,
            self._tracer.start_span(
                name, context=_context(traceparent), start_time=self.wall_ns(start_s)
            ),
        )

    def wall_ns(self, at_s: float) -> int:
        """A moment of this process's clock as others know it."""
        return time.time_ns() - int((self._clock.now_s() - at_s) * 1e9)

    @staticmethod
    def failed(span: OtelSpan, code: str) -> None:
        """Marks a span."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR, code))

    def close(self) -> None:
        """Sends what is left. Blocks, for a receiver that does not answer some seconds."""
        self._provider.shutdown()


def check_tracing() -> None:
    """Raises ConfigError where traces cannot be made: packages are missing, or the environment asks
    for an unknown protocol.
    """
    protocol = _protocol()
    if protocol not in _EXPORTERS:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, but must be one of "
            f"{', '.join(_EXPORTERS)}",
            param="tracing",
        )
    try:
        found = importlib.util.find_spec(f"{_EXPORTERS[protocol]}.trace_exporter")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            "tracing is true, but OpenTelemetry's OTLP exporter is not installed: install "
            "baton-serve[otel], or set tracing to false",
            param="tracing",
        )


def _protocol() -> str:
    common = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or common


def _exporter() -> SpanExporter:
    """By the environment alone: endpoint, headers, certificates, time-out."""
    if _protocol() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


def _context(traceparent: str) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
