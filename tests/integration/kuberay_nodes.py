"""The pods of a render as Ray nodes of this machine: `ray start` with the flags that KubeRay makes
of each group, and the REST call by which it deploys.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.deploy.rendering import Object, ray_service
from tests.integration.conftest import free_port

START_S = 200.0
TOKEN = "a-token-of-this-test-and-no-other"
BIN = Path(sys.executable).parent
COUNT = """
import json, sys
from baton.cluster.node_drain import RayNodeTable
table = RayNodeTable(sys.argv[1])
print(json.dumps({node.node_id: table.num_replicas(node.node_id) for node in table.nodes()}))
"""


@dataclass
class Nodes:
    """Started by `start_head` and `start_workers`, always ended by `stop`. `home` needs a short
    path, for Ray's sockets.
    """

    found: list[Object]
    home: Path
    gcs: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    agents: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        patience = {"RAY_raylet_start_wait_time_s": str(int(START_S)), "OMP_NUM_THREADS": "1"}
        return {**own, **auth, **patience, "HOME": str(self.home)}

    def start_head(self) -> None:
        cluster = ray_service(self.found)["spec"]["rayClusterConfig"]
        more = ["--head", f"--port={self.gcs}", f"--dashboard-port={self.dashboard}"]
        more += [f"--ray-client-server-port={free_port()}", "--include-dashboard=true"]
        self._start("head", cluster["headGroupSpec"], [*more, f"--temp-dir={self.home}"])

    def start_workers(self) -> None:
        """May follow `deploy`: replicas wait for nodes."""
        cluster = ray_service(self.found)["spec"]["rayClusterConfig"]
        for group in cluster["workerGroupSpecs"]:
            self._start(group["groupName"], group, [f"--address=127.0.0.1:{self.gcs}"])

    def _start(self, name: str, group: dict[str, Any], more: list[str]) -> None:
        self.agents[name], self.metrics[name] = free_port(), free_port()
        offered = group["resources"]
        custom = {k: float(v) for k, v in offered.items() if k not in ("CPU", "GPU")}
        flags = {k: v for k, v in group["rayStartParams"].items() if k != "dashboard-host"}
        flags |= {"num-cpus": offered["CPU"], "num-gpus": offered.get("GPU", "0")}
        flags |= {"resources": json.dumps(custom), "node-ip-address": "127.0.0.1"}
        flags |= {"dashboard-agent-listen-port": str(self.agents[name])}
        # KubeRay's own is the 8080 of the containers' port `metrics`.
        flags |= {"metrics-export-port": str(self.metrics[name])}
        command = [str(BIN / "ray"), "start", "--block", *more]
        command += [f"--{key}={value}" for key, value in flags.items()]
        container = group["template"]["spec"]["containers"][0]
        # A pod has a /tmp of its own.
        given = {e["name"]: e["value"] for e in container["env"] if "/tmp" not in e["value"]}
        with (self.home / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.env | given, stdout=log, stderr=log, cwd=self.home
            )

        # One after the other: nodes of one address that start at once get in each other's way.
        log_path = self.home / f"{name}.log"
        self.wait(lambda: "Ray runtime started" in log_path.read_text())

    def wait(self, done: Callable[[], Any]) -> None:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            for name, process in self.processes.items():
                assert process.poll() is None, (self.home / f"{name}.log").read_text()[-3000:]
            try:
                if done():
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"not in time: {self.application()}")

    def deploy(self, config: dict[str, Any]) -> None:
        """PUTs a serveConfigV2."""
        self._rest("PUT", config)

    def application(self) -> Any:
        return self._rest("GET", None)["applications"]["baton"]

    def replicas(self) -> dict[str, int]:
        """How many replicas each node has, as `baton drain` counts them."""
        command = [sys.executable, "-c", COUNT, f"127.0.0.1:{self.gcs}"]
        done = subprocess.run(command, env=self.env, capture_output=True, check=True, timeout=60)
        found: dict[str, int] = json.loads(done.stdout)
        return found

    def _rest(self, method: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}/api/serve/applications/",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def stop(self) -> None:
        alive = [psutil.Process(p.pid) for p in self.processes.values() if p.poll() is None]
        # What is left of Ray is of no use: it need not end in order.
        everything = [c for p in alive for c in [p, *p.children(recursive=True)]]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, 20)
        for own in self.processes.values():
            own.wait(20)


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
