"""Traces of a real cluster, as a receiver of OTLP gets them: one connected trace a request."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.integration.conftest import Cluster, served

from baton.protos import public_pb2 as public
from baton.protos.public_pb2_grpc import BatonStub

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed"
)
trace_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
CONFIG = """
tracing: true
router: {policy: always_remote}
engine: {num_blocks: 256, max_step_tokens: 128}
"""
SECRET_WORD = "xylophone"


class Receiver(ThreadingHTTPServer):
    """Keeps the spans of every export, and the raw bodies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.spans: list[dict[str, Any]] = []
        self.raw: list[bytes] = []

    def of(self, trace_id: str, count: int) -> list[dict[str, Any]]:
        """The spans of a trace, once there are so many."""
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            found = [span for span in list(self.spans) if span["trace"] == trace_id]
            if len(found) >= count:
                return found
            time.sleep(0.1)
        raise AssertionError(f"not {count} spans in time: {found}")


class _Export(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.raw.append(body)
        request = trace_pb2.ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            service = _values(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                self.server.spans += [_plain(span, service) for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def _plain(span: Any, service: str) -> dict[str, Any]:
    return {
        "name": span.name,
        "service": service,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "begin": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "status": span.status.code,
        **_values(span.attributes),
    }


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with served(folder, CONFIG, []) as running:
            running.wait_for(1, 1)
            yield running


def tree(spans: list[dict[str, Any]], root: str) -> dict[str, list[str]]:
    """Names of every span's children, by its name; the spans must hang together under `root`."""
    names = {span["id"]: span["name"] for span in spans} | {root: "client"}
    found: dict[str, list[str]] = {}
    for span in spans:
        assert span["parent"] in names, f"{span} hangs under nothing"
        assert span["begin"] <= span["end"]
        found.setdefault(names[span["parent"]], []).append(span["name"])
    return {name: sorted(children) for name, children in found.items()}


def test_remote_and_local_prefill_are_one_trace(traced: Cluster, receiver: Receiver) -> None:
    """The first answer's prompt is computed remotely, its sibling where the KV is then."""
    body = {"prompt": f"{SECRET_WORD} " * 40, "max_tokens": 4, "n": 2, "ignore_eos": True}
    with traced.client() as client:
        answer = client.post("/v1/completions", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    spans = receiver.of(TRACE, 10)
    assert tree(spans, PARENT) == {
        "client": ["baton.request"],
        "baton.request": ["baton.route"] * 2 + ["baton.worker"] * 2,
        "baton.worker": ["baton.decode"] * 2 + ["baton.prefill"] * 2 + ["baton.transfer"],
    }
    by_name = {span["name"]: span for span in spans}
    services = {(span["name"], span["service"]) for span in spans}
    assert {("baton.request", "baton-gateway"), ("baton.decode", "baton-decode")} <= services
    assert {("baton.prefill", "baton-prefill"), ("baton.prefill", "baton-decode")} <= services
    assert by_name["baton.transfer"]["baton.bytes"] > 0
    assert by_name["baton.request"]["baton.output_tokens"] == 8
    routes = [span for span in spans if span["name"] == "baton.route"]
    reasons = {(span["baton.plan_kind"], span["baton.plan_reason"]) for span in routes}
    assert reasons == {("remote", "always_remote"), ("local", "stick_to")}
    assert all(span["status"] != 2 for span in spans)
    assert not any(SECRET_WORD.encode() in raw for raw in receiver.raw)


def test_grpc_brings_its_context_too(traced: Cluster, receiver: Receiver) -> None:
    trace_id = TRACE[::-1]
    metadata = [("traceparent", f"00-{trace_id}-{PARENT}-01")]
    with grpc.insecure_channel(traced.grpc_target) as channel:
        sampling = public.Sampling(max_tokens=2)
        request = public.GenerateRequest(prompt="one two three", sampling=sampling)
        BatonStub(channel).Generate(request, metadata=metadata, timeout=60)
    assert tree(receiver.of(trace_id, 6), PARENT)["client"] == ["baton.request"]


def test_a_sampled_out_request_is_not_told_of(traced: Cluster, receiver: Receiver) -> None:
    trace_id = TRACE[1:] + "0"
    with traced.client() as client:
        headers = {"traceparent": f"00-{trace_id}-{PARENT}-00"}
        answer: httpx.Response = client.post(
            "/v1/completions", json={"prompt": "no", "max_tokens": 2}, headers=headers
        )
    assert answer.status_code == 200
    time.sleep(1.0)
    assert not [span for span in receiver.spans if span["trace"] == trace_id]
