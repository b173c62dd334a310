"""The chart as Helm 3 (its command line) and Helm 4 (its SDK) render it."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.deploy.finding import CHART, tool

RELEASE, NAMESPACE = "demo", "llm"
Object = dict[str, Any]


@functools.cache
def render(values_file: Path, kube_version: str = "1.33.0") -> str:
    """The text that `helm template` writes, hooks included. Raises CalledProcessError."""
    return run_helm("template", "-f", str(values_file), kube_version=kube_version)


def run_helm(command: str, *options: str, kube_version: str = "1.33.0") -> str:
    """`helm template` of the chart, or another command that takes the same options."""
    arguments = [tool("helm"), command, RELEASE, str(CHART), "-n", NAMESPACE]
    arguments += ["--kube-version", kube_version, *options]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def refusal(values: Mapping[str, Any]) -> str:
    """What Helm says of values that it refuses."""
    try:
        run_helm("template", *(f"--set-json={k}={json.dumps(v)}" for k, v in values.items()))
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    raise AssertionError(f"these values are accepted: {values}")


def objects(text: str) -> list[Object]:
    """The rendered objects in a settled order. Raises a YAML error for text that is none."""
    found = [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]
    return sorted(found, key=lambda one: (one["kind"], one["metadata"]["name"]))


def of_kind(found: list[Object], kind: str) -> list[Object]:
    return [one for one in found if one["kind"] == kind]


def ray_service(found: list[Object]) -> Object:
    (service,) = of_kind(found, "RayService")
    return service


def serve_config(found: list[Object]) -> dict[str, Any]:
    """serveConfigV2 as KubeRay reads it."""
    config: dict[str, Any] = yaml.safe_load(ray_service(found)["spec"]["serveConfigV2"])
    return config


def pod_templates(found: list[Object]) -> dict[str, Object]:
    """The pod template of each Ray group."""
    cluster = ray_service(found)["spec"]["rayClusterConfig"]
    groups = {g["groupName"]: g["template"] for g in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}
