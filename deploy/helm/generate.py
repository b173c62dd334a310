"""Writes what follows from values.yaml and from Baton's configuration: values.schema.json, and the
table of values in the chart's README. Run it after changing either; a test holds them up to date.

    python deploy/helm/generate.py
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pydantic
import yaml

from baton.cluster.config import (
    ENGINE_FIXED,
    GATEWAY_FIXED,
    WORKER_FIXED,
    BatonConfig,
    PoolConfig,
)
from baton.decode_worker.config import DecodeWorkerConfig
from baton.engine.config import EngineConfig
from baton.gateway.config import GatewayConfig
from baton.prefill_worker.config import PrefillWorkerConfig

CHART = Path(__file__).resolve().parent / "baton"
BEGIN, END = "<!-- values: generated -->", "<!-- end of values -->"
# Keys of Baton's configuration that the chart sets, and keys that would put secrets into values.
CHART_SETS = {
    "": {"model", "name", "gateway_resources", "gateway_port_step", "worker_host", "secret"},
    "gateway": {
        "host",
        "http_port",
        "grpc_port",
        "tls_cert_path",
        "tls_key_path",
        "api_keys",
        "tenants",
    },
    "ray": {"address", "object_store_bytes", "start_timeout_s"},
    "pool": {"resources"},
}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([kMGTP]i?|m)?$"}
OPTIONAL_QUANTITY = {"type": "string", "pattern": f"({QUANTITY['pattern']})|^$"}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
SECONDS = {"type": "integer", "minimum": 0}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECTS = {"type": "array", "items": {"type": "object"}}
NAMED = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}},
    },
}
KUBERNETES = {
    "nodeSelector": LABELS,
    "podLabels": LABELS,
    "podAnnotations": LABELS,
    "tolerations": OBJECTS,
    "topologySpreadConstraints": OBJECTS,
    "extraVolumes": NAMED,
    "extraVolumeMounts": NAMED,
    "extraEnv": NAMED,
    "affinity": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {"type": "object"} for name in ("nodeAffinity", "podAffinity", "podAntiAffinity")
        },
    },
    "cpu": QUANTITY,
    "memory": QUANTITY,
    "shm": QUANTITY,
    "terminationGracePeriodSeconds": {"type": "integer", "minimum": 30},
    "antiAffinity": {"enum": ["soft", "hard", "none"]},
    "labels": LABELS,
    "annotations": LABELS,
}
# What the type of a default does not say, by path.
DEVICES = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}
RULES: dict[str, Any] = {
    "fullnameOverride": {"type": "string", "maxLength": 40},
    "commonLabels": LABELS,
    "images.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "images.pullSecrets": NAMED,
    "images.gateway.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "images.worker.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "model.name": {"type": "string", "pattern": r"^[A-Za-z0-9._-]*$"},
    "model.source": {"enum": ["image", "claim", "hostPath", "fetch"]},
    "adapters.source": {"enum": ["none", "claim", "hostPath"]},
    "adapters.hostPath": {"type": "string", "pattern": "^(/.*)?$"},
    "lmcache.memoryGib": {"type": "number", "exclusiveMinimum": 0},
    "lmcache.storage": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string"}},
        },
    },
    "prefill.kvDisk.size": OPTIONAL_QUANTITY,
    "decode.kvDisk.size": OPTIONAL_QUANTITY,
    "model.hostPath": {"type": "string", "pattern": "^(/.*)?$"},
    "model.fetch.from": {"type": "string", "pattern": "^((hf|s3)://[^ ]+/[^ ]+)?$"},
    "model.fetch.sizeLimit": QUANTITY,
    "ray.version": {"type": "string", "pattern": r"^2\.(5[2-9]|[6-9][0-9])\.[0-9]+$"},
    "autoscaler.idleTimeoutSeconds": SECONDS,
    "autoscaler.surgeReplicas": {"type": "integer", "minimum": 0},
    "autoscaler.resources": {"type": "object"},
    "gcsFaultTolerance.redisAddress": {"type": "string", "pattern": "^([^ ]+:[0-9]+)?$"},
    "upgrade.type": {"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]},
    "upgrade.configChanges": {"enum": ["inPlace", "newCluster"]},
    "upgrade.deletionDelaySeconds": SECONDS,
    "upgrade.stepSizePercent": {"type": "integer", "minimum": 1, "maximum": 100},
    "upgrade.intervalSeconds": {"type": "integer", "minimum": 1},
    "upgrade.maxSurgePercent": {"type": "integer", "minimum": 1, "maximum": 100},
    "gateway.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "gateway.service.port": PORT,
    "gateway.service.grpcPort": PORT,
    "gateway.route.parentRefs": NAMED,
    "gateway.route.hostnames": {"type": "array", "items": {"type": "string"}},
    "gateway.route.grpcHostnames": {"type": "array", "items": {"type": "string"}},
    "prefill.devices": DEVICES,
    "decode.devices": DEVICES,
    "podSecurityContext": {"type": "object"},
    "containerSecurityContext": {"type": "object"},
    "tmpSize": QUANTITY,
    "networkPolicy.clients": OBJECTS,
    "networkPolicy.monitoring": {"type": "object"},
    "networkPolicy.operator": {"type": "object"},
    "networkPolicy.apiServer.to": OBJECTS,
    "networkPolicy.apiServer.port": PORT,
    "networkPolicy.egress": OBJECTS,
    "monitoring.podMonitor.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    "monitoring.rules.ttftSeconds": {"type": "number", "exclusiveMinimum": 0},
    "monitoring.rules.itlSeconds": {"type": "number", "exclusiveMinimum": 0},
    "monitoring.rules.runbookUrl": {"type": "string", "pattern": "^(https?://.*)?$"},
    "test.timeoutSeconds": {"type": "integer", "minimum": 1},
    "extraObjects": OBJECTS,
}


def main() -> None:
    """Rewrites both files."""
    (CHART / "values.schema.json").write_text(schema_text())
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text()))


def schema_text() -> str:
    """values.schema.json."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = _values_schema(values, ())
    schema["properties"]["config"] = config_schema()
    # Helm's own.
    schema["properties"]["global"] = {"type": "object"}
    return (
        json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=1)
        + "\n"
    )


def with_table(readme: str) -> str:
    """The README with its table of values made anew."""
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{path}` | `{default}` | {text} |" for path, default, text in documented()]
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + "\n".join(rows) + "\n" + END + rest.split(END)[1]


def documented() -> Iterator[tuple[str, str, str]]:
    """Each documented value of values.yaml: its path, its default, what its `# --` comment says."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    values = yaml.safe_load("\n".join(lines))
    path: list[str] = []
    text = ""
    for line in lines:
        if comment := re.match(r" *# -- (.*)", line):
            text = comment[1]
        elif key := re.match(r"( *)([A-Za-z0-9]+):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if text:
                value: Any = values
                for part in path:
                    value = value[part]
                shown = "as prefill" if path == ["decode"] else json.dumps(value)
                yield ".".join(path), shown, text
                text = ""


def _values_schema(value: Any, path: tuple[str, ...]) -> dict[str, Any]:
    dotted = ".".join(path)
    if dotted in RULES:
        return RULES[dotted]
    if path and path[-1] in KUBERNETES:
        return KUBERNETES[path[-1]]
    if isinstance(value, dict):
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {k: _values_schema(v, (*path, k)) for k, v in value.items()},
        }
    kinds = {bool: "boolean", str: "string", int: "integer"}
    return {"type": kinds[type(value)]}


def config_schema() -> dict[str, Any]:
    """Baton's configuration, without what the chart sets."""
    root = _dataclass(BatonConfig, CHART_SETS[""] | {"prefill", "decode", "gateway", "ray"})
    engine = _dataclass(EngineConfig, set(ENGINE_FIXED))
    properties = root["properties"]
    properties["engine"] = engine
    for role, worker in (("prefill", PrefillWorkerConfig), ("decode", DecodeWorkerConfig)):
        pool = _dataclass(PoolConfig, {"worker", *CHART_SETS["pool"]})
        pool["properties"]["engine"] = engine
        pool["properties"]["worker"] = _dataclass(worker, set(WORKER_FIXED))
        properties[role] = pool
    properties["gateway"] = _dataclass(GatewayConfig, CHART_SETS["gateway"] | set(GATEWAY_FIXED))
    ray = next(f for f in dataclasses.fields(BatonConfig) if f.name == "ray")
    properties["ray"] = _dataclass(typing.get_type_hints(BatonConfig)[ray.name], CHART_SETS["ray"])
    return root


def _dataclass(cls: Any, without: set[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in without]
    properties = {name: _type(hints[name]) for name in names}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _type(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(one) for one in inner]}
    if hint is types.NoneType:
        return {"type": "null"}
    if origin is tuple:
        return {"type": "array", "items": _type(inner[0])}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(inner[1])}
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, set())
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return pydantic.TypeAdapter(hint).json_schema()


if __name__ == "__main__":
    main()
