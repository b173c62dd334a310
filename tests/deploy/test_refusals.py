"""Wrong values are refused by name; wrong renders are caught by the checks of these tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tests.deploy import crds, cross_checks, kuberay_rules, serve_schema
from tests.deploy.finding import CHART
from tests.deploy.rendering import Object, objects, of_kind, ray_service, refusal, render

CLAIM = {"model.source": "claim", "model.name": "m"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 2}, "replicas"),
        ({"gateway.cpus": "2"}, "cpus"),
        ({"config.decode.min_replica": 2}, "min_replica"),
        ({"config.decode.min_replicas": "2"}, "min_replicas"),
        ({"config.gateway.http_port": 80}, "http_port"),
        ({"config.gateway.api_keys": ["k"]}, "api_keys"),
        ({"config.model": "/m"}, "model"),
        ({"config.router.polcy": "cost"}, "polcy"),
        ({"images.pullPolicy": "Sometimes"}, "pullPolicy"),
        ({"images.worker.digest": "sha256:1"}, "digest"),
        ({"head.memory": "4 GB"}, "memory"),
        ({"gateway.antiAffinity": "strong"}, "antiAffinity"),
        ({"gateway.service.port": 70000}, "port"),
        ({"upgrade.type": "Rolling"}, "upgrade.type"),
        ({"model.source": "torrent"}, "model.source"),
        ({"ray.version": "2.9.0"}, "ray.version"),
        ({"prefill.devices": {"rdma/hca": 0}}, "devices"),
        ({"model.source": "claim"}, "model.name is empty"),
        (CLAIM, "model.claim.name is empty"),
        ({"model.source": "hostPath", "model.name": "m"}, "model.hostPath is empty"),
        ({"model.source": "fetch", "model.name": "m"}, "model.fetch.from is empty"),
        ({"adapters.source": "claim"}, "adapters.claim.name is empty"),
        ({"adapters.source": "hostPath"}, "adapters.hostPath is empty"),
        ({"prefill.kvDisk.size": "big"}, "kvDisk.size"),
        ({"gcsFaultTolerance.enabled": True}, "redisAddress is empty"),
        ({"lmcache.enabled": True}, "kv_tiers.cpu_gib is not set"),
        ({"lmcache.enabled": True, "config": {"lmcache": {"address": "tcp://h:1"}}}, "its own"),
        ({"lmcache.storage": [{"base_path": "/kv"}]}, "lmcache"),
        ({"upgrade.type": "NewClusterWithIncrementalUpgrade"}, "gatewayClassName is empty"),
        (
            {
                "upgrade.type": "NewClusterWithIncrementalUpgrade",
                "upgrade.gatewayClassName": "c",
                "autoscaler.enabled": False,
            },
            "autoscaler.enabled is false",
        ),
        (
            {
                "upgrade.type": "NewClusterWithIncrementalUpgrade",
                "upgrade.gatewayClassName": "c",
                "upgrade.maxSurgePercent": 10,
            },
            "must not exceed upgrade.maxSurgePercent",
        ),
        ({"serviceAccount.create": False}, "give serviceAccount.headName"),
        ({"gateway.ingress.enabled": True}, "gateway.ingress.host is empty"),
        ({"gateway.route.enabled": True}, "gateway.route.parentRefs is empty"),
        ({"networkPolicy.restrictEgress": True}, "networkPolicy.apiServer.to is empty"),
        (
            {"config.decode": {"min_replicas": 3, "max_replicas": 2}},
            "must be at least min_replicas",
        ),
        (
            {"config.decode": {"max_replicas": 2}, "autoscaler.enabled": False},
            "no nodes would come",
        ),
        ({"config.decode.num_hosts": 2}, "tensor_parallel_size 1 cannot be shared by num_hosts 2"),
        ({"config.decode.num_gpus": 0.5}, "Kubernetes gives whole ones"),
        ({"config.decode.drain_s": 600}, "decode.terminationGracePeriodSeconds is 180"),
        ({"config.gateway": {"drain_grace_s": 200}}, "gateway.terminationGracePeriodSeconds is"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    assert said in refusal(values)


def _set(path: str, value: Any) -> Callable[[Object], None]:
    def change(one: Object) -> None:
        *parents, last = [int(p) if p.isdigit() else p for p in path.split("/")]
        inner: Any = one
        for part in parents:
            inner = inner[part]
        inner[last] = value

    return change


CLUSTER = "spec/rayClusterConfig"
GROUP = f"{CLUSTER}/workerGroupSpecs/0"
CONTAINER = f"{GROUP}/template/spec/containers/0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/serveConfig", ""),
        (f"{CLUSTER}/enableInTreeAutoscalin", True),
        (f"{CLUSTER}/autoscalerOptions/version", "v3"),
        (f"{CONTAINER}/livenesProbe", {}),
        (f"{CONTAINER}/resources/limits/memory", "8Gb"),
        (f"{GROUP}/rayStartParams/num-cpus", 1),
        (f"{GROUP}/groupName", None),
        ("spec/managedBy", "me"),
    ],
)
def test_schemas_catch_wrong_objects(path: str, value: Any) -> None:
    service = copy.deepcopy(ray_service(objects(render(CHART / "examples/chat.yaml"))))
    assert not crds.problems(service)
    _set(path, value)(service)
    assert crds.problems(service)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("metadata/name", "n" * 48, "47 characters"),
        ("metadata/name", "1n", "DNS-1035"),
        ("spec/upgradeStrategy/type", "Rolling", "none of"),
        ("spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent", 101, "maxSurgePercent"),
        ("spec/upgradeStrategy/clusterUpgradeOptions/gatewayClassName", "", "gatewayClassName"),
        ("spec/upgradeStrategy/clusterUpgradeOptions/intervalSeconds", 0, "intervalSeconds"),
        (f"{CLUSTER}/enableInTreeAutoscaling", False, "need the autoscaler"),
        (f"{CLUSTER}/rayVersion", "2.51.0", "needs rayVersion 2.52.0"),
        (f"{CLUSTER}/tlsOptions", {"enabled": True}, "feature gate"),
        (f"{CLUSTER}/headGroupSpec/headService", {"metadata": {"name": "n"}}, "must not be set"),
        (f"{CLUSTER}/headGroupSpec/template/spec/restartPolicy", "Always", "must be Never"),
        (f"{CLUSTER}/headGroupSpec/rayStartParams/redis-password", "p", "redis-password belongs"),
        (f"{CONTAINER}/name", "sidecar", "must be Ray's"),
        (f"{GROUP}/rayStartParams/num-cpus", "1", "both resources and rayStartParams"),
        (f"{GROUP}/minReplicas", 9, "above maxReplicas"),
        (f"{GROUP}/minReplicas", -1, "negative"),
        (f"{GROUP}/labels", {"a": "b c"}, "no label"),
    ],
)
def test_kuberays_rules_catch_what_schemas_allow(path: str, value: Any, said: str) -> None:
    service = copy.deepcopy(ray_service(objects(render(CHART / "examples/agents.yaml"))))
    assert not kuberay_rules.problems(service)
    _set(path, value)(service)
    assert any(said in problem for problem in kuberay_rules.problems(service))


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("Service", "spec/selector/app.kubernetes.io~1component", "g", "selects no pod"),
        ("Service", "spec/ports/0/targetPort", "htp", "names the port htp"),
        ("PodDisruptionBudget", "spec/selector/matchLabels", {"a": "b"}, "selects no pod"),
        (
            "RayService",
            f"{GROUP}/template/spec/terminationGracePeriodSeconds",
            20,
            "does not drain",
        ),
        ("RayService", f"{CLUSTER}/workerGroupSpecs/1/resources/GPU", "0", "GPU"),
        ("RayService", f"{CLUSTER}/workerGroupSpecs/2/minReplicas", 0, "does not follow its pool"),
        ("RayService", f"{GROUP}/template/spec/volumes", [], "is not both there and mounted"),
        ("RayService", f"{GROUP}/template/spec/serviceAccountName", "x", "is not rendered"),
    ],
)
def test_cross_checks_catch_what_does_not_fit(kind: str, path: str, value: Any, said: str) -> None:
    found = copy.deepcopy(objects(render(CHART / "examples/chat.yaml")))
    *parents, last = [int(p) if p.isdigit() else p.replace("~1", "/") for p in path.split("/")]
    inner: Any = of_kind(found, kind)[0]
    for part in parents:
        inner = inner[part]
    inner[last] = value
    assert any(said in problem for problem in cross_checks.problems(found))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "config",
    [
        {"applicatons": []},
        {"applications": [{"import_path": "a:b", "deploymnts": []}]},
        {"applications": [{"import_path": "a:b", "route_prefix": "x"}]},
        {"applications": [{"name": "a"}]},
    ],
)
def test_serves_configuration_is_read_strictly(config: dict[str, Any]) -> None:
    assert serve_schema.problems(config)
