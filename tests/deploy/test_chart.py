"""Every example of the chart: as it was (goldens), as Kubernetes, KubeRay and Baton take it."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tests.deploy import crds, cross_checks, kuberay_rules, serve_schema
from tests.deploy.finding import CHART, EXAMPLES, ROOT, module, tool
from tests.deploy.rendering import (
    NAMESPACE,
    RELEASE,
    objects,
    of_kind,
    pod_templates,
    ray_service,
    render,
    serve_config,
)

from baton.cluster.config import BatonConfig, resolve
from baton.cluster.schema import Document
from baton.kvtransfer.lmcache.config import LMCacheConfig
from baton.kvtransfer.lmcache.server import server_arguments

GOLDENS = Path(__file__).parent / "goldens"
KUBERNETES = ("1.29", "1.33", "1.37")
examples = pytest.mark.parametrize("values", EXAMPLES, ids=lambda path: path.stem)


def resolved(values: Path, folder: Path) -> BatonConfig:
    """The configuration that a render leads to, with stand-ins for what pods mount."""
    args: dict[str, Any] = serve_config(objects(render(values)))["applications"][0]["args"]
    if "model" in args:
        # The model is not here: one rank needs only its folder.
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        args["model"] = str(model)
        for section in (args.get("engine", {}), *(args[r].get("engine", {}) for r in POOLS)):
            section.pop("tensor_parallel_size", None)
        for role in POOLS:
            args[role].pop("num_hosts", None)
    if "secret_file" in args:
        args["secret_file"] = str(folder / "secret")
        (folder / "secret").write_text("s")
    if "tenants_file" in args["gateway"]:
        args["gateway"]["tenants_file"] = str(folder / "tenants.yaml")
        (folder / "tenants.yaml").write_text("tenants: [{name: a, keys: [k]}]\n")
    return resolve(Document(values=args))


POOLS = ("prefill", "decode")


def golden(text: str) -> str:
    """The objects in order, with dashboards by their digest."""
    found = objects(text)
    for one in of_kind(found, "ConfigMap"):
        for name, data in one["data"].items():
            if name.endswith(".json"):
                one["data"][name] = f"sha256 {hashlib.sha256(data.encode()).hexdigest()}"
    return yaml.safe_dump_all(found, sort_keys=True, width=120)


@examples
def test_renders_as_it_did(values: Path) -> None:
    """UPDATE_GOLDENS=1 writes them anew: look at the difference before it is committed."""
    path, text = GOLDENS / f"{values.stem}.yaml", golden(render(values))
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} differs: UPDATE_GOLDENS=1 writes it anew"


@examples
def test_helm_4_renders_the_same(values: Path) -> None:
    helm_python = module("helm_python")
    given = yaml.safe_load(values.read_text())
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(given, name=RELEASE, namespace=NAMESPACE)
        chart.validate_schema(given)
    text = "\n---\n".join(t for path, t in texts.items() if path.endswith(".yaml"))
    assert objects(text) == objects(render(values))
    found = helm_python.lint(str(CHART), strict=True, kube_version="v1.33.0")
    assert not [one for one in found.get("messages", []) if one.get("severity", 0) >= 2]


@examples
def test_lint(values: Path) -> None:
    command = [tool("helm"), "lint", "--strict", str(CHART), "-f", str(values)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@examples
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kubernetes_accepts_it(values: Path) -> None:
    kubernetes_validate = module("kubernetes_validate")
    custom = crds.definitions()
    for one in objects(render(values)):
        if (one["apiVersion"], one["kind"]) in custom:
            assert not crds.problems(one)
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(one, version, strict=True)
    for name, pod in pod_templates(objects(render(values))).items():
        whole = {"apiVersion": "v1", "kind": "Pod", **pod}
        whole["metadata"] = {**pod["metadata"], "name": name}
        kubernetes_validate.validate(whole, KUBERNETES[0], strict=True)


@examples
def test_kuberay_accepts_it(values: Path) -> None:
    assert not kuberay_rules.problems(ray_service(objects(render(values))))


@examples
def test_its_objects_fit_each_other(values: Path) -> None:
    assert not cross_checks.problems(objects(render(values)))


@examples
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serve_and_baton_read_its_configuration(values: Path, tmp_path: Path) -> None:
    assert not serve_schema.problems(serve_config(objects(render(values))))
    config = resolved(values, tmp_path)
    assert config.gateway.host == "0.0.0.0"
    assert config.gateway_port_step == 0
    # Otherwise a cluster whose GPU nodes are still to come would run on CPUs.
    assert all(p.num_gpus is not None for p in (config.prefill, config.decode))


@examples
def test_pods_have_few_rights(values: Path) -> None:
    found = objects(render(values))
    tests = {o["metadata"]["name"]: o for o in of_kind(found, "Pod")}
    scaled = ray_service(found)["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]
    for name, pod in {**pod_templates(found), **tests}.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is (name == "head" and scaled)
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert set(context["capabilities"].get("add", [])) <= {"IPC_LOCK"}
    assert not of_kind(found, "Role") + of_kind(found, "ClusterRole")


def test_lmcache_servers_have_the_options_of_batons_own() -> None:
    """Those of `baton serve` are what the tests of the tier run."""
    pods = pod_templates(objects(render(CHART / "ci" / "everything.yaml")))
    servers = {role: pod["spec"].get("initContainers", []) for role, pod in pods.items()}
    assert {role: len(found) for role, found in servers.items()} == {
        **dict.fromkeys(("head", "gateway"), 0),
        **dict.fromkeys(POOLS, 1),
    }
    config = LMCacheConfig(memory_gib=8, storage=('{"base_path":"/mnt/kv","type":"fs"}',))
    own = server_arguments(config, 5555, "baton")
    for role in POOLS:
        (server,) = servers[role]
        given = server["command"][2:]
        # Each is a server of its own, by its pod's name.
        given[given.index("--instance-id") + 1] = "baton"
        pairs = set(itertools.pairwise(given))
        assert set(list(itertools.pairwise(own))[:-1:2]) <= pairs
        assert server["restartPolicy"] == "Always"


def test_old_kubernetes_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(EXAMPLES[0], kube_version="1.28.0")
    assert "incompatible with Kubernetes" in caught.value.stderr


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "deploy/helm/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated_is_up_to_date() -> None:
    made = generator()
    say = "run python deploy/helm/generate.py"
    assert (CHART / "values.schema.json").read_text() == made.schema_text(), say
    readme = (CHART / "README.md").read_text()
    assert readme == made.with_table(readme), say


def test_every_value_is_documented() -> None:
    documented = {path for path, _, _ in generator().documented()}
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def leaves(value: Any, path: str) -> list[str]:
        if path in documented or not isinstance(value, dict):
            return [path]
        return [
            leaf for key, one in value.items() for leaf in leaves(one, f"{path}.{key}".strip("."))
        ]

    assert not [leaf for leaf in leaves(values, "") if leaf not in documented]
