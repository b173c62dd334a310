"""The chart's CPU trial on a real Ray: a node for each pod, the rendered serveConfigV2, the request
of `helm test`, the probes, the hook that drains; and what an SRE sees of it: a real Prometheus,
traces, logs, and the commands of the pages.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from tests.deploy.finding import CHART, ROOT
from tests.deploy.monitoring import dashboard_queries, metrics_named
from tests.deploy.rendering import (
    NAMESPACE,
    objects,
    of_kind,
    pod_templates,
    run_helm,
    serve_config,
)
from tests.deploy.test_docs import commands, of
from tests.integration.conftest import free_port
from tests.integration.kuberay_nodes import BIN, Nodes, answers
from tests.integration.newcomer import HERE, Newcomer, newcomer, run_baton
from tests.integration.otlp_receiver import Receiver, receiving
from tests.integration.prometheus import WAIT_S, Prometheus, scraping

from baton.protos import public_pb2 as public
from baton.protos.public_pb2_grpc import BatonStub

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET_WORD = "xylophone"
# Serve stops what it cannot move when the pool's `drain_s` and its own 10 s are left.
DRAIN_S = 44


@dataclass
class Trial:
    """The trial while it runs."""

    nodes: Nodes
    url: str
    grpc_target: str
    receiver: Receiver
    newcomer: Newcomer

    def complete(self, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"prompt": "one two three", "max_tokens": 8, "ignore_eos": True} | more
        path = f"{self.url}/v1/completions"
        answer = httpx.post(path, json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """One request after the other."""
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                self.complete(prompt=f"{time.monotonic()} " * 8)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(120)


def watched(receiver: Receiver) -> dict[str, Any]:
    """Values beside those of the trial: all that can be seen of it is on."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "RAY_LOG_TO_STDERR": "1",
    }
    pod = {"extraEnv": [{"name": name, "value": value} for name, value in env.items()]}
    config = {"tracing": True, "logs": {"format": "json", "level": "info"}}
    return {
        "config": {**config, "router": {"policy": "always_remote"}},
        "monitoring": {name: {"enabled": True} for name in ("podMonitor", "rules", "dashboards")},
        **dict.fromkeys(("head", "gateway", "prefill", "decode"), pod),
    }


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="no extra `otel`")
    home = Path(tempfile.mkdtemp(prefix="baton-", dir="/tmp"))
    example = CHART / "examples" / "trial-cpu.yaml"
    with receiving() as receiver:
        (home / "watched.yaml").write_text(yaml.safe_dump(watched(receiver)))
        text = run_helm("template", "-f", str(example), "-f", str(home / "watched.yaml"))
        nodes = Nodes(objects(text), home)
        port, grpc_port = free_port(), free_port()
        config = serve_config(nodes.found)
        # The chart's 8000 may be taken on this machine; all else is as it was rendered.
        ports = {"http_port": port, "grpc_port": grpc_port}
        config["applications"][0]["args"]["gateway"] |= ports
        try:
            nodes.start_head()
            nodes.wait(lambda: nodes.deploy(config) is None)
            nodes.start_workers()
            nodes.wait(lambda: answers(f"http://127.0.0.1:{port}/ready"))
            nodes.wait(lambda: nodes.application()["status"] == "RUNNING")
            url = f"http://127.0.0.1:{port}"
            with newcomer(home, url) as found:
                found.shell.run(next(line for line in commands() if line.startswith("helm inst")))
                yield Trial(nodes, url, f"127.0.0.1:{grpc_port}", receiver, found)
        finally:
            nodes.stop()
            shutil.rmtree(home, ignore_errors=True)


def test_each_pod_has_its_replica_and_kubernetes_probes_answer(trial: Trial) -> None:
    nodes = trial.nodes
    assert nodes.application()["deployments"].keys() == {"prefill", "decode", "gateway"}
    assert sorted(nodes.replicas().values()) == [0, 1, 1, 1], "none on the head"
    # Kubernetes asks without Ray's token.
    for name, pod in pod_templates(nodes.found).items():
        path = pod["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"]
        nodes.wait(lambda url=f"http://127.0.0.1:{nodes.agents[name]}{path}": answers(url))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        answers(f"http://127.0.0.1:{nodes.dashboard}/api/serve/applications/")


def test_helms_test_passes_and_fails(trial: Trial) -> None:
    """The page's own lines; and its pod fails where there is no gateway."""
    assert "Succeeded" in said(trial, "helm test")
    assert "decode=decode-" in trial.newcomer.tested[-1]
    script = str(CHART / "files" / "request.py")
    env = {"BATON_URL": f"http://127.0.0.1:{free_port()}", "BATON_PROMPT": "Hi"}
    wrong = subprocess.run(
        [sys.executable, script],
        env=env | {"BATON_TIMEOUT_S": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert wrong.returncode == 1
    assert "no answer" in wrong.stderr


def said(trial: Trial, begins: str) -> str:
    """What the pages' line that begins so prints."""
    line = next(line for line in commands() if line.startswith(begins))
    return trial.newcomer.shell.run(line)


def test_a_forwarded_port_leads_to_the_gateway(trial: Trial) -> None:
    """`kubectl port-forward` and what the pages, the notes and README do with it."""
    forward = "kubectl -n llm port-forward"
    line = next(line for line in commands() if line.startswith(forward))
    with trial.newcomer.forwarding(line) as url:
        run = trial.newcomer.shell.run
        for line in commands():
            if line.startswith("baton chat"):
                told = run_baton([*shlex.split(line.replace(HERE, url))[1:], "--plan"], "Hi\n")
                assert "decode=decode-" in told
        notes = run("helm get notes baton -n llm")
        curl = re.search(r"^ *(curl .*?'})?.*?\n.*-d '.*?'$", notes, re.M)
        assert curl is not None
        assert "choices" in run(curl[0].replace("\\\n", " ").replace(HERE, url))
        for line in commands([ROOT / "README.md"]):
            if line.startswith("curl"):
                assert "x-baton-plan: decode=" in run(line.replace(HERE, url))
            elif line.startswith(".venv/bin/baton"):
                arguments = re.sub(r"--num-requests \d+", "--num-requests 4", line).split()[1:]
                more = ["--once"] if "status" in arguments else []
                run_baton([*arguments, *more, "--url", url], "Hi\n")


def tree(spans: list[dict[str, Any]], root: str) -> dict[str, list[str]]:
    """Names of every span's children, by its name; the spans must hang together under `root`."""
    names = {span["id"]: span["name"] for span in spans} | {root: "client"}
    found: dict[str, list[str]] = {}
    for span in spans:
        assert span["parent"] in names, f"{span} hangs under nothing"
        assert span["begin"] <= span["end"]
        found.setdefault(names[span["parent"]], []).append(span["name"])
    return {name: sorted(children) for name, children in found.items()}


def test_remote_and_local_prefill_are_one_trace(trial: Trial) -> None:
    """The first answer's prompt is computed remotely, its sibling where the KV is then."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    trial.complete(prompt=f"{SECRET_WORD} " * 40, max_tokens=4, n=2, headers=headers)
    spans = trial.receiver.of(TRACE, 10)
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
    assert not any(SECRET_WORD.encode() in raw for raw in trial.receiver.raw)


def test_grpc_brings_its_context_too_and_what_is_sampled_out_is_not_told_of(trial: Trial) -> None:
    silent, trace_id = TRACE[1:] + "0", TRACE[::-1]
    trial.complete(headers={"traceparent": f"00-{silent}-{PARENT}-00"})
    metadata = [("traceparent", f"00-{trace_id}-{PARENT}-01")]
    with grpc.insecure_channel(trial.grpc_target) as channel:
        sampling = public.Sampling(max_tokens=2)
        request = public.GenerateRequest(prompt="one two three", sampling=sampling)
        BatonStub(channel).Generate(request, metadata=metadata, timeout=60)
    assert tree(trial.receiver.of(trace_id, 6), PARENT)["client"] == ["baton.request"]
    # Each process sends in order.
    assert not [span for span in trial.receiver.spans if span["trace"] == silent]


def test_every_pods_log_is_json_with_the_requests_id_and_not_its_words(trial: Trial) -> None:
    """Pods' standard error, which `kubectl logs` shows."""
    answer = trial.complete(prompt=SECRET_WORD, headers={"x-request-id": "of-a-client"})
    request_id = answer.json()["id"]

    def lines(role: str) -> list[dict[str, Any]]:
        text = (trial.nodes.home / f"{role}.log").read_text(errors="replace")
        assert SECRET_WORD not in text
        found = [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]
        return [one for one in found if str(one.get("request_id")).startswith(request_id)]

    roles = ("gateway", "prefill", "decode")
    trial.nodes.wait(lambda: all(lines(role) for role in roles))
    told = {role: lines(role)[0] for role in roles}
    assert {role: one["service"] for role, one in told.items()} == {r: f"baton-{r}" for r in roles}
    assert {one["outcome"] for one in told.values()} == {"ok"}
    assert told["gateway"]["client_request_id"] == "of-a-client"
    assert told["gateway"]["output_tokens"] == 8
    assert f'"request_id": "{request_id}' in said(trial, "kubectl -n llm logs")
    assert told["decode"]["attempt"] == told["prefill"]["attempt"]
    assert told["decode"]["prefilled_by"] == told["prefill"]["instance"]


def test_prometheus_answers_every_query_of_dashboards_and_alerts(trial: Trial) -> None:
    nodes = trial.nodes
    ports = {(role, "metrics"): port for role, port in nodes.metrics.items()}
    ports["gateway", "http"] = int(trial.url.rpartition(":")[2])
    rendered = [o["data"] for o in of_kind(nodes.found, "ConfigMap")]
    boards = [
        json.loads(text) for data in rendered for name, text in data.items() if ".json" in name
    ]
    queries = [
        query.replace("$namespace", NAMESPACE).replace("$__rate_interval", "5s")
        for query in dashboard_queries(boards)
    ]
    assert len(queries) > 30
    with scraping(nodes.found, ports, nodes.home) as prometheus, trial.load():
        prometheus.wait_until_up(1 + len(nodes.metrics))
        end_s = time.monotonic() + WAIT_S
        while (silent := [q for q in queries if not prometheus.query(q)]) and (
            time.monotonic() < end_s
        ):
            time.sleep(0.5)
        assert silent == [], "no data in time"
        alerts_are_evaluated(prometheus)
        for name in ("ray_baton_pool_target_replicas", "baton_pool_target_replicas"):
            assert prometheus.query(f'{name}{{pool="decode"}}') == [1.0]


def alerts_are_evaluated(prometheus: Prometheus) -> None:
    rules, names = prometheus.rules(), prometheus.names()
    assert len(rules) > 10
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        assert metrics_named(rule["query"]) <= names, rule["name"]
    # Whatever hangs on jobs' names rather than on this machine's speed.
    quiet = {"BatonGatewaysDown", "BatonGatewayDown", "BatonNoDecodeWorkers", "BatonPoolCannotGrow"}
    assert {rule["state"] for rule in rules if rule["name"] in quiet} == {"inactive"}


def test_the_pages_commands_work(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """`baton` as the Kubernetes pages use it, but for what would change the trial's size."""
    # The test above has had a conversation.
    lines = [line for line in of("baton") if not line.startswith("baton chat")]
    assert any(line.startswith("baton config apply") for line in lines)
    home = trial.nodes.home
    monkeypatch.chdir(home)
    monkeypatch.delenv("BATON_API_KEY", raising=False)
    request_id = trial.complete().json()["id"]
    with trial.load():
        for line in lines:
            line = line.replace("http://127.0.0.1:8000", trial.url)
            line = re.sub(r"--duration \d+", "--duration 1", line)
            line = line.replace("--input-len 128:512 --output-len 64", "--output-len 8")
            command = shlex.split(line.replace("REQUEST_ID", request_id))[1:]
            command += ["--dry-run"] if "apply" in command else []
            run_baton(command)
    (trace,) = home.glob("*.trace.json.gz")
    names = [
        event.get("name")
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    ]
    assert "ProfilerStep#0" in names


def test_a_pods_last_hook_drains_it(trial: Trial) -> None:
    """No other node takes what runs there, so it serves until shortly before its deadline."""
    nodes = trial.nodes
    replicas = nodes.replicas()
    node_id = max(replicas, key=lambda node_id: replicas[node_id])
    command = [str(BIN / "baton"), "drain", "--timeout-s", str(DRAIN_S), "--node-id", node_id]
    command += ["--ray-address", f"127.0.0.1:{nodes.gcs}"]
    done = subprocess.run(command, env=nodes.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "has nothing left to do" in done.stdout, done.stderr
    assert not nodes.replicas().get(node_id)
