"""Traces that cannot be made are refused before anything starts; those over gRPC arrive."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from baton.protos.clock import SystemClock
from baton.protos.errors import ConfigError
from baton.protos.tracing import Tracing, check_tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_an_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier/pigeon")
    with pytest.raises(ConfigError, match=r"carrier/pigeon.*http/protobuf"):
        check_tracing()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"baton-serve\[otel\]"):
        check_tracing()


def test_spans_reach_a_receiver_over_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP they do in tests/integration/test_kuberay.py, from a whole cluster."""
    exported = "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
    reason = "no extra `otel`"
    messages = pytest.importorskip(exported, reason=reason)
    services = pytest.importorskip(f"{exported}_grpc", reason=reason)
    requests: list[Any] = []

    class Collector(services.TraceServiceServicer):  # type: ignore[misc, name-defined]
        def Export(self, request: Any, context: Any) -> Any:
            requests.append(request)
            return messages.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    services.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    try:
        tracing, now_s = Tracing("baton-test", "t0"), SystemClock().now_s()
        tracing.begin("baton.request", f"00-{TRACE}-{PARENT}-01", now_s).end({"request_id": "r"})
        tracing.close()
    finally:
        server.stop(None).wait(10)
    (group,) = requests[0].resource_spans
    names = {one.key: one.value.string_value for one in group.resource.attributes}
    ((span,),) = [scope.spans for scope in group.scope_spans]
    assert (names["service.name"], span.name) == ("baton-test", "baton.request")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert [one.key for one in span.attributes] == ["baton.request_id"]
