"""The chart's CPU trial on a real Ray: a node for each pod, the rendered serveConfigV2, the request
of `helm test`, the probes, the hook that drains.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.finding import CHART
from tests.deploy.monitoring import metrics_named, metrics_when_something_is_wrong
from tests.deploy.rendering import objects, pod_templates, render, serve_config
from tests.deploy.test_docs import files, of
from tests.integration.conftest import free_port
from tests.integration.kuberay_nodes import BIN, Nodes, answers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    home = Path(tempfile.mkdtemp(prefix="baton-", dir="/tmp"))
    running = Nodes(objects(render(CHART / "examples" / "trial-cpu.yaml")), home)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)


def test_the_trial_runs_as_it_is_rendered(nodes: Nodes) -> None:
    config = serve_config(nodes.found)
    port = free_port()
    # The chart's 8000 may be taken on this machine; all else is as it was rendered.
    config["applications"][0]["args"]["gateway"] |= {"http_port": port, "grpc_port": None}
    nodes.wait(lambda: nodes.deploy(config) is None)
    nodes.wait(lambda: answers(f"http://127.0.0.1:{port}/ready"))
    nodes.wait(lambda: nodes.application()["status"] == "RUNNING")
    assert nodes.application()["deployments"].keys() == {"prefill", "decode", "gateway"}
    replicas = nodes.replicas()
    assert sorted(replicas.values()) == [0, 1, 1, 1], "none on the head, one on each other node"
    probes_answer(nodes)
    helm_test_passes(nodes, port)
    metrics_are_there(port)
    pages_commands_work(nodes, port)
    drains(nodes, max(replicas, key=lambda node_id: replicas[node_id]))


def probes_answer(nodes: Nodes) -> None:
    """Kubernetes asks without Ray's token."""
    for name, pod in pod_templates(nodes.found).items():
        path = pod["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"]
        nodes.wait(lambda url=f"http://127.0.0.1:{nodes.agents[name]}{path}": answers(url))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        answers(f"http://127.0.0.1:{nodes.dashboard}/api/serve/applications/")


def helm_test_passes(nodes: Nodes, port: int) -> None:
    """The script of the chart's test pod; and it fails where there is no gateway."""
    maps = [o["data"] for o in nodes.found if o["kind"] == "ConfigMap"]
    (script,) = [data["request.py"] for data in maps if "request.py" in data]

    def run(url: str, timeout_s: str) -> subprocess.CompletedProcess[str]:
        env = {"BATON_URL": url, "BATON_PROMPT": "Hi", "BATON_TIMEOUT_S": timeout_s}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    done = run(f"http://127.0.0.1:{port}", "60")
    assert done.returncode == 0, done.stderr
    assert "decode=decode-" in done.stdout
    wrong = run(f"http://127.0.0.1:{free_port()}", "1")
    assert wrong.returncode == 1
    assert "no answer" in wrong.stderr


def metrics_are_there(port: int) -> None:
    """Every metric of an alert or a dashboard is one that a gateway has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    there = set(re.findall(r"^# TYPE (\S+) ", text, re.M)) | metrics_when_something_is_wrong()
    assert metrics_named() <= there


def pages_commands_work(nodes: Nodes, port: int) -> None:
    """`baton` as docs/kubernetes/operate.md uses it, but for what would change the trial's size."""
    lines = [line for line in of("baton") if not line.startswith("baton chat")]
    assert any(line.startswith("baton config apply") for line in lines)
    for name, text in files().items():
        (nodes.home / name).write_text(text)
    for line in lines:
        command = shlex.split(line.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}"))
        command += ["--dry-run"] if "apply" in command else []
        done = subprocess.run(
            [str(BIN / "baton"), *command[1:]],
            cwd=nodes.home,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (line, done.stderr)


def drains(nodes: Nodes, node_id: str) -> None:
    """A pod's preStop hook. No other node takes what runs here, so it serves until shortly before
    its deadline.
    """
    command = [str(BIN / "baton"), "drain", "--timeout-s", "50", "--node-id", node_id]
    command += ["--ray-address", f"127.0.0.1:{nodes.gcs}"]
    done = subprocess.run(command, env=nodes.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "has nothing left to do" in done.stdout, done.stderr
    assert not nodes.replicas().get(node_id)
