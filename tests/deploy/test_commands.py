"""The commands of helm and kubectl on the Kubernetes pages, run in reading order by the real
programs against a stand-in for Kubernetes' API (tests/deploy/kube): no API server can be had from
the registries that tests may use. What is sent must pass Kubernetes' schemas and KubeRay's; what
is left is compared with the render. Nothing starts a pod: `helm test`, `port-forward` and `logs`
meet live gateways in tests/integration/test_kuberay.py.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.finding import ROOT
from tests.deploy.kube.actors import NODE, NODES, Actors, Shell
from tests.deploy.kube.server import Server, serving
from tests.deploy.kube.store import Object, kinds
from tests.deploy.rendering import objects
from tests.deploy.test_docs import commands, files

# As a newcomer goes through them; the last one ends with the end of the release.
PAGES = ("install", "configure", "operate", "troubleshoot", "tune", "upgrade")
SAID = "a gateway said this"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        server.logs = lambda pod: f"{SAID}, {pod['metadata']['name']}\n"
        server.store.react = Actors(server.store, run_test=lambda pod: True)
        yield server


@pytest.fixture(scope="module")
def shell(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    home = tmp_path_factory.mktemp("newcomer")
    (home / "deploy").symlink_to(ROOT / "deploy")
    for name, text in files().items():
        (home / name).write_text(text)
    return Shell(server, home)


def lines(page: str) -> list[str]:
    found = commands([ROOT / "docs" / "kubernetes" / f"{page}.md"])
    return [line for line in found if line.split()[0] in ("helm", "kubectl", "diff")]


def release(server: Server) -> dict[tuple[str, str], Object]:
    """What there is of the release, by kind and name."""
    plurals = {kind.plural for kind in kinds().values()} - {"pods", "secrets", "events"}
    return {
        (one["kind"], one["metadata"]["name"]): one
        for plural in plurals
        for one in server.store.of(plural)
        if one["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == "Helm"
    }


def same_as_rendered(server: Server, shell: Shell, line: str) -> None:
    """Helm's patches led to what a new install would have."""
    options = shlex.join(o for o in shlex.split(line)[2:] if not o.startswith(("--inst", "--cre")))
    rendered = objects(shell.run(f"helm template --no-hooks --kube-version 1.33.0 {options}"))
    found = release(server)
    assert found.keys() == {(one["kind"], one["metadata"]["name"]) for one in rendered}
    for one in rendered:
        kept = found[one["kind"], one["metadata"]["name"]]
        assert {k: kept.get(k) for k in one.keys() - {"metadata"}} == {
            k: one[k] for k in one.keys() - {"metadata"}
        }


def secrets_that_pods_name_are_there(server: Server) -> None:
    """Those of the page's own commands: a newcomer's pods would wait for others."""
    there = {one["metadata"]["name"] for one in server.store.of("secrets")}
    text = json.dumps([*server.store.of("rayservices"), *server.store.of("pods")])
    named = re.findall(r'"secretName": "([^"]+)"|"secretKeyRef": {[^}]*"name": "([^"]+)"', text)
    assert {one or other for one, other in named} <= there


def names_of_pods(server: Server) -> set[str]:
    return {one["metadata"]["name"] for one in server.store.of("pods")}


def check(server: Server, shell: Shell, line: str, said: str) -> None:
    """What a line must have done."""
    words = [word for word in shlex.split(line) if word not in ("-n", "llm")]
    match words[:2]:
        case ["diff", *_]:
            assert "max_replicas: 16" in (shell.home / "after.yaml").read_text()
        case ["helm", "install" | "upgrade"]:
            same_as_rendered(server, shell, line)
            secrets_that_pods_name_are_there(server)
        case ["helm", "test"]:
            assert re.search(r"Phase:\s+Succeeded", said)
        case ["helm", "template" | "get"]:
            shown = re.search(r"> (\S+)$", line)
            assert objects((shell.home / shown[1]).read_text() if shown else said)
        case ["helm", "history"]:
            assert "deployed" in said
        case ["helm", "rollback"]:
            assert "Rollback to" in shell.run("helm history baton -n llm")
        case ["helm", "uninstall"]:
            assert not release(server)
        case ["kubectl", "create"]:
            (made,) = [o for o in server.store.of("secrets") if o["metadata"]["name"] == words[4]]
            (value,) = made["data"].values()
            assert base64.b64decode(value)
        case ["kubectl", "drain"]:
            assert server.store.get(NODES, "", NODE)["spec"]["unschedulable"]
            assert not names_of_pods(server)
            assert isinstance(server.store.react, Actors)
            server.store.react.kuberay(*server.store.of("rayservices"))
        case ["kubectl", "delete"]:
            assert not names_of_pods(server)
        case ["kubectl", "logs"]:
            assert SAID in said
        case ["kubectl", "get" | "describe"]:
            assert "baton" in said
        case _:
            raise AssertionError(f"nothing checks what this does: {line}")


def test_a_newcomer_goes_through_the_pages(server: Server, shell: Shell) -> None:
    for page in PAGES:
        for line in lines(page):
            if "port-forward" not in line:
                check(server, shell, line, shell.run(line))


def test_the_pages_are_all_there_are() -> None:
    assert {path.stem for path in (ROOT / "docs" / "kubernetes").glob("*.md")} == set(PAGES)


def test_notes_have_the_pages_commands(shell: Shell) -> None:
    """What Helm prints after an install."""
    line = next(line for line in lines("install") if line.startswith("helm install"))
    notes = shell.run(line.replace("install", "install --dry-run", 1))
    said = re.findall(r"^ +((?:kubectl|helm) .*)$", notes.partition("NOTES:")[2], re.M)
    assert len(said) == 4
    assert set(said) <= {line for page in PAGES for line in lines(page)}


def test_what_kubernetes_would_refuse_is_refused(server: Server, shell: Shell) -> None:
    """The stand-in is none that takes anything."""
    values = Path(shell.home / "extra.yaml")
    wrong = {"kind": "PodMonitor", "apiVersion": "monitoring.coreos.com/v1"}
    wrong |= {"metadata": {"name": "x"}, "spec": {"selectr": {}}}
    values.write_text(f"extraObjects: [{wrong}]\n")
    line = next(line for line in lines("install") if line.startswith("helm install"))
    with pytest.raises(AssertionError, match="selectr"):
        shell.run(f"{line.replace(' baton ', ' wrong ', 1)} -f extra.yaml")
