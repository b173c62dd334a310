"""What acts on objects in a cluster, as far as the pages' commands see it: the pods, the head's
Service and the status that KubeRay makes of a RayService, and Secrets' readers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml
from tests.deploy.finding import tool
from tests.deploy.kube.server import Server
from tests.deploy.kube.store import Kind, Object, Store, kinds

NODE = "NODE"
POD, NODES = kinds()["v1", "pods"], kinds()["v1", "nodes"]
SERVICES = kinds()["ray.io/v1", "rayservices"]
SERVICE, EVENT = kinds()["v1", "services"], kinds()["v1", "events"]


class Actors:
    """Set as a store's `react`. `run_test` runs a pod of `helm test` and says whether it passed."""

    def __init__(self, store: Store, run_test: Callable[[Object], bool]) -> None:
        self._store = store
        self._run_test = run_test
        store.create(NODES, "", {"metadata": {"name": NODE}})

    def __call__(self, kind: Kind, one: Object) -> None:
        if kind.name == "RayService":
            self.kuberay(one)
        elif kind.name == "Pod" and "helm.sh/hook" in one["metadata"].get("annotations", {}):
            phase = "Succeeded" if self._run_test(one) else "Failed"
            self._store.tell(kind, one, {"phase": phase})

    def kuberay(self, one: Object) -> None:
        """Makes everything of a RayService anew."""
        name, namespace = one["metadata"]["name"], one["metadata"]["namespace"]
        self._collect()
        cluster = one["spec"]["rayClusterConfig"]
        groups = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
        for group, spec in {"head": cluster["headGroupSpec"], **groups}.items():
            for i in range(spec.get("replicas", 1) * spec.get("numOfHosts", 1)):
                self._pod(f"{name}-{group}-{i}", one, spec["template"])
        ports = {"ports": [{"name": "dashboard", "port": 8265}]}
        service = {"metadata": {"name": f"{name}-head-svc"}, "spec": ports}
        self._store.create(SERVICE, namespace, service, known=True)
        self._store.tell(SERVICES, one, {"serviceStatus": "Running"})
        event: Object = {"metadata": {"name": f"{name}.1"}, "reason": "Running", "type": "Normal"}
        event["involvedObject"] = {"kind": one["kind"], "name": name, "namespace": namespace}
        event["lastTimestamp"] = one["metadata"]["creationTimestamp"]
        self._store.create(EVENT, namespace, event, known=True)

    def _collect(self) -> None:
        """What an earlier RayService of that name left behind has ended by now."""
        for kind in (POD, SERVICE, EVENT):
            for one in self._store.of(kind.plural):
                if "app.kubernetes.io/managed-by" not in one["metadata"].get("labels", {}):
                    self._store.delete(kind, one)

    def _pod(self, name: str, owner: Object, template: Object) -> None:
        reference = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "controller": True}
        reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
        meta = template["metadata"] | {"name": name, "ownerReferences": [reference]}
        pod = {"metadata": meta, "spec": template["spec"] | {"nodeName": NODE}}
        # The chart's tests check groups' templates as pods.
        pod = self._store.create(POD, owner["metadata"]["namespace"], pod, known=True)
        ready = [{"type": "Ready", "status": "True"}]
        self._store.tell(POD, pod, {"phase": "Running", "conditions": ready})


class Shell:
    """Runs the pages' lines in bash, in `home`, with kubectl and helm that talk to `server`."""

    def __init__(self, server: Server, home: Path) -> None:
        self.home = home
        kubeconfig = home / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(server.kubeconfig))
        kubeconfig.chmod(0o600)
        paths = {str(Path(tool(name)).parent) for name in ("helm", "kubectl", "openssl")}
        own = {"KUBECONFIG": str(kubeconfig), "HOME": str(home)}
        self.env = os.environ | own | {"PATH": ":".join([*sorted(paths), os.environ["PATH"]])}

    def run(self, line: str) -> str:
        """What it prints. Raises AssertionError with what it complains of."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.home,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        # To find differences is no failure.
        assert done.returncode <= line.startswith("diff "), f"$ {line}\n{done.stderr}"
        return done.stdout
