"""What no schema sees: whether the objects of one render fit each other, and KubeRay's pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.deploy.rendering import Object, of_kind, pod_templates, ray_service, serve_config

# Secrets that are expected to be there already are named in values; ConfigMaps are rendered.
KINDS_THAT_SELECT = ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor")


def problems(found: list[Object]) -> list[str]:
    """What does not fit, in sentences."""
    pods = pod_templates(found)
    return [
        *_selectors(found, pods),
        *_references(found, pods),
        *_grace(found, pods),
        *_groups(found),
    ]


def selects(selector: Mapping[str, str], template: Object) -> bool:
    labels = template["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.items())


def _selectors(found: list[Object], pods: Mapping[str, Object]) -> Iterator[str]:
    for one in (o for kind in KINDS_THAT_SELECT for o in of_kind(found, kind)):
        spec, where = one["spec"], f"{one['kind']} {one['metadata']['name']}"
        selector = spec.get("podSelector") or spec["selector"]
        selected = [p for p in pods.values() if selects(selector.get("matchLabels", selector), p)]
        if not selected:
            yield f"{where} selects no pod"
        for port in _named_ports(one):
            for pod in selected:
                if port not in port_names(pod):
                    yield f"{where} names the port {port}, which a selected pod does not have"


def _named_ports(one: Object) -> Iterator[str]:
    spec = one["spec"]
    if one["kind"] == "Service":
        yield from (p["targetPort"] for p in spec["ports"] if isinstance(p["targetPort"], str))
    if one["kind"] == "PodMonitor":
        yield from (endpoint["port"] for endpoint in spec["podMetricsEndpoints"])
    if one["kind"] == "NetworkPolicy":
        rules = [port for rule in spec["ingress"] for port in rule.get("ports", [])]
        yield from (p["port"] for p in rules if isinstance(p["port"], str))


def port_names(template: Object) -> set[str]:
    return {p["name"] for p in template["spec"]["containers"][0]["ports"]}


def _references(found: list[Object], pods: Mapping[str, Object]) -> Iterator[str]:
    """Mounts name volumes, pods name service accounts, routes name services that are there."""
    services = {
        o["metadata"]["name"]: {p["name"]: p["port"] for p in o["spec"]["ports"]}
        for o in of_kind(found, "Service")
    }
    accounts = {o["metadata"]["name"] for o in of_kind(found, "ServiceAccount")}
    tests = {o["metadata"]["name"]: o for o in of_kind(found, "Pod")}
    for name, pod in {**pods, **tests}.items():
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        containers = pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
        mounted = {m["name"] for c in containers for m in c["volumeMounts"]}
        for volume in mounted ^ volumes:
            yield f"the volume {volume} of {name} is not both there and mounted"
        if pod["spec"]["serviceAccountName"] not in accounts:
            yield f"{name} runs as {pod['spec']['serviceAccountName']}, which is not rendered"
        ports = [port["containerPort"] for c in containers for port in c.get("ports", [])]
        if len(ports) != len(set(ports)):
            yield f"{name} has a port twice"
    for kind in ("HTTPRoute", "GRPCRoute"):
        for one in of_kind(found, kind):
            for backend in (b for rule in one["spec"]["rules"] for b in rule["backendRefs"]):
                if backend["port"] not in services.get(backend["name"], {}).values():
                    yield f"{kind} sends to {backend}, which no Service has"
    for one in of_kind(found, "Ingress"):
        for path in (p for rule in one["spec"]["rules"] for p in rule["http"]["paths"]):
            backend = path["backend"]["service"]
            if backend["port"]["name"] not in services.get(backend["name"], {}):
                yield f"the Ingress sends to {backend}, which no Service has"


def _grace(found: list[Object], pods: Mapping[str, Object]) -> Iterator[str]:
    """A pod is told to drain in time before it is killed, and for longer than its drain takes."""
    args: dict[str, Any] = serve_config(found)["applications"][0]["args"]
    drains = {
        "gateway": args["gateway"].get("drain_grace_s", 30.0),
        "prefill": args["prefill"].get("drain_s", 30.0),
        "decode": args["decode"].get("drain_s", 30.0),
        "head": 0.0,
    }
    for name, pod in pods.items():
        command = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        timeout_s, grace_s = float(command[-1]), pod["spec"]["terminationGracePeriodSeconds"]
        if command[:3] != ["baton", "drain", "--timeout-s"] or timeout_s >= grace_s:
            yield f"{name} does not drain before its grace period of {grace_s} s ends: {command}"
        if timeout_s < drains[name] + 10:
            yield f"{name} drains for {drains[name]} s, but its hook ends after {timeout_s} s"


def _groups(found: list[Object]) -> Iterator[str]:
    """Each pool has a group whose pods hold exactly one of its workers."""
    cluster = ray_service(found)["spec"]["rayClusterConfig"]
    groups = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    args = serve_config(found)["applications"][0]["args"]
    common = args.get("engine", {})
    for role in ("prefill", "decode"):
        pool = args[role]
        low = pool.get("min_replicas", 1)
        high = pool.get("max_replicas")
        high = low if high is None else high
        if not high:
            if role in groups:
                yield f"there is a group {role} without a pool"
            continue
        group = groups[role]
        if (group["minReplicas"], group["replicas"]) != (low, low) or group["maxReplicas"] < high:
            yield f"the group {role} does not follow its pool of {low} to {high}"
        ranks = pool.get("engine", {}).get("tensor_parallel_size")
        ranks = ranks or common.get("tensor_parallel_size", 1)
        offered = {k: float(v) for k, v in group["resources"].items()}
        takes = {"CPU": pool.get("num_cpus", 1), "GPU": pool["num_gpus"], **pool["resources"]}
        for resource, amount in takes.items():
            if offered.get(resource, 0) * group["numOfHosts"] < amount * ranks:
                yield f"a pod of {role} offers {offered}, which is too little {resource}"
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = sum(n for name, n in limits.items() if name.endswith("/gpu"))
        if gpus != offered["GPU"]:
            yield f"pods of {role} have {gpus} GPUs, but Ray is told of {offered['GPU']:g}"
