"""A real Prometheus that scrapes the pods of a render where they run as processes of this machine,
as the rendered PodMonitors and PrometheusRule tell the operator to.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.deploy.finding import tool
from tests.deploy.rendering import NAMESPACE, Object, of_kind, pod_templates
from tests.integration.conftest import free_port

WAIT_S = 90.0
# Where a pod's named port is: (role, name) -> port of this machine.
Ports = Mapping[tuple[str, str], int]


@dataclass
class Prometheus:
    url: str

    def query(self, expression: str) -> list[float]:
        """The values now, without those that are not numbers."""
        found = self._get("query", query=expression)["result"]
        values = [float(sample["value"][1]) for sample in found]
        return [value for value in values if not math.isnan(value)]

    def names(self) -> set[str]:
        """Of every metric that it has."""
        return set(self._get("label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_until_up(self, num_targets: int) -> None:
        """Until so many targets were scraped without an error."""
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            targets = self._get("targets")["activeTargets"]
            if [t["health"] for t in targets] == ["up"] * num_targets:
                return
            time.sleep(0.2)
        raise AssertionError([(t["scrapeUrl"], t["health"], t["lastError"]) for t in targets])

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]


@contextmanager
def scraping(found: list[Object], ports: Ports, folder: Path) -> Iterator[Prometheus]:
    """Prometheus, ready, until the block ends."""
    port = free_port()
    (rule,) = of_kind(found, "PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": list(scrape_configs(found, ports)),
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [tool("prometheus"), "--config.file=prometheus.yaml", "--storage.tsdb.path=data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(lambda: urllib.request.urlopen(f"{url}/-/ready", timeout=5).close() is None, log)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)


def scrape_configs(found: list[Object], ports: Ports) -> Iterator[dict[str, Any]]:
    """What the Prometheus operator makes of the PodMonitors: the job is namespace/name, and targets
    are the selected pods' containers' ports by name.
    """
    for monitor in of_kind(found, "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            targets = []
            for role, pod in pod_templates(found).items():
                if not wanted <= pod["metadata"]["labels"].items():
                    continue
                names = [p["name"] for p in pod["spec"]["containers"][0]["ports"]]
                assert endpoint["port"] in names, (role, endpoint)
                labels = {"namespace": NAMESPACE, "pod": role, "endpoint": endpoint["port"]}
                address = f"127.0.0.1:{ports[role, endpoint['port']]}"
                targets.append({"targets": [address], "labels": labels})
            assert targets, monitor["metadata"]["name"]
            yield {
                "job_name": f"{NAMESPACE}/{monitor['metadata']['name']}",
                "metrics_path": endpoint.get("path", "/metrics"),
                "scheme": endpoint.get("scheme", "http"),
                "static_configs": targets,
            }


def wait(done: Callable[[], bool], log: Path) -> None:
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        try:
            if done():
                return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())
