"""What KubeRay 1.7's operator refuses of a RayService although its schema allows it: the rules of
its controllers, `controllers/ray/utils/validation.go` and `common/service.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

STRATEGIES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")
MANAGED_ENV = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")
ALPHA = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}


def problems(service: dict[str, Any]) -> list[str]:
    """Every rule that a RayService breaks, in a sentence."""
    return [*_metadata(service), *_upgrade(service["spec"]), *_cluster(service)]


def _metadata(service: dict[str, Any]) -> Iterator[str]:
    name = service["metadata"]["name"]
    if len(name) > 47:
        yield f"the name {name} has more than 47 characters"
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        yield f"the name {name} is no DNS-1035 label"


def _upgrade(spec: dict[str, Any]) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy") or {}
    kind = strategy.get("type", "NewCluster")
    if kind not in STRATEGIES:
        yield f"upgradeStrategy.type {kind} is none of {', '.join(STRATEGIES)}"
    if spec.get("rayClusterDeletionDelaySeconds", 60) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "incremental upgrades need the autoscaler"
    options = strategy.get("clusterUpgradeOptions")
    if options is None:
        yield "incremental upgrades need clusterUpgradeOptions"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= surge <= 100:
        yield "maxSurgePercent is not in 0 to 100"
    if not 0 <= step <= surge:
        yield "stepSizePercent is not in 0 to maxSurgePercent"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds is not positive"
    if not options.get("gatewayClassName"):
        yield "gatewayClassName is not set"
    head = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    # KubeRay builds the clusters' services from these, and none without them.
    if not any(port["name"] == "serve" for port in head.get("ports", [])):
        yield "the head's container has no port named serve"


def _cluster(service: dict[str, Any]) -> Iterator[str]:
    spec = service["spec"]["rayClusterConfig"]
    head = spec["headGroupSpec"]
    if (head.get("headService") or {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name must not be set"
    if "upgradeStrategy" in spec:
        yield "rayClusterConfig.upgradeStrategy must not be set in a RayService"
    for field, gate in ALPHA.items():
        if field in spec:
            yield f"{field} needs the feature gate {gate}, which is off"
    yield from _auth(spec)
    yield from _fault_tolerance(service)
    scaled = bool(spec.get("enableInTreeAutoscaling"))
    options = spec.get("autoscalerOptions") or {}
    second = scaled and options.get("version") == "v2"
    for env in options.get("env", []):
        if env["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD":
            yield "autoscalerOptions.env sets KUBERAY_GEN_AUTOSCALER_START_CMD"
    if "version" in options and _env(head, "RAY_enable_autoscaler_v2"):
        yield "both autoscalerOptions.version and RAY_enable_autoscaler_v2 are set"
    for name, group in [("head", head)] + [(g["groupName"], g) for g in spec["workerGroupSpecs"]]:
        yield from _group(name, group, second=second)
    for group in spec["workerGroupSpecs"]:
        yield from _replicas(group, scaled=scaled, second=second)


def _group(name: str, group: dict[str, Any], *, second: bool) -> Iterator[str]:
    containers = group["template"]["spec"].get("containers") or []
    if not containers:
        yield f"the group {name} has no container"
    elif containers[0]["name"] != "ray":
        yield f"the first container of {name} is {containers[0]['name']}, but must be Ray's"
    params = group.get("rayStartParams") or {}
    taken = {"num-cpus", "num-gpus", "memory", "resources"} & params.keys()
    if taken and group.get("resources"):
        yield f"{name} has both resources and rayStartParams {', '.join(sorted(taken))}"
    if "labels" in params:
        yield f"{name} has rayStartParams.labels, which is not supported"
    if any(not isinstance(value, str) for value in params.values()):
        yield f"{name} has rayStartParams that are no text"
    for key, value in (group.get("labels") or {}).items():
        if not LABEL_VALUE.match(value):
            yield f"{name} has the label {key}={value}, which is no label of Kubernetes"
    if second and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield f"restartPolicy of {name} must be Never or unset with autoscaler v2"


def _replicas(group: dict[str, Any], *, scaled: bool, second: bool) -> Iterator[str]:
    name = group["groupName"]
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if not scaled and (low is None or high is None):
        yield f"{name} needs minReplicas and maxReplicas without the autoscaler"
    if (low or 0) < 0 or (high or 0) < 0:
        yield f"{name} has negative replicas"
    if low is not None and high is not None and low > high:
        yield f"{name} has minReplicas {low} above maxReplicas {high}"
    if scaled and group.get("suspend"):
        yield f"{name} cannot be suspended with the autoscaler"
    for field in ("idleTimeoutSeconds", "priority"):
        if field in group and (not second or group[field] < 0):
            yield f"{name}.{field} needs autoscaler v2 and a number of at least 0"


def _auth(spec: dict[str, Any]) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is not supported by a RayService"
    if options.get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
        if version < (2, 52, 0):
            yield f"authOptions.mode token needs rayVersion 2.52.0, not {spec.get('rayVersion')}"


def _fault_tolerance(service: dict[str, Any]) -> Iterator[str]:
    spec = service["spec"]["rayClusterConfig"]
    options, head = spec.get("gcsFaultToleranceOptions"), spec["headGroupSpec"]
    notes = service["metadata"].get("annotations") or {}
    if _env(head, "REDIS_USERNAME") or "redis-username" in head.get("rayStartParams", {}):
        yield "a redis user name belongs into gcsFaultToleranceOptions"
    if options is None:
        if _env(head, "RAY_REDIS_ADDRESS"):
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
        return
    if {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & notes.keys():
        yield "annotations and gcsFaultToleranceOptions both set fault tolerance"
    if "redis-password" in head.get("rayStartParams", {}):
        yield "redis-password belongs into gcsFaultToleranceOptions"
    for name in MANAGED_ENV:
        if _env(head, name):
            yield f"the head sets {name} beside gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "rocksdb":
        yield "rocksdb needs the feature gate GCSFaultToleranceEmbeddedStorage, which is off"
    elif "storage" in options:
        yield "gcsFaultToleranceOptions.storage is of rocksdb only"


def _env(group: dict[str, Any], name: str) -> bool:
    container = group["template"]["spec"]["containers"][0]
    return any(env["name"] == name for env in container.get("env", []))
