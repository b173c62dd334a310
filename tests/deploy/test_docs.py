"""Every command of the Kubernetes pages: run as far as it can be without Kubernetes, otherwise
checked against the render; and every `baton` command of all pages.
"""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from tests.deploy.finding import CHART, ROOT, tool
from tests.deploy.rendering import Object, objects, of_kind, pod_templates

from baton.cluster.cli import baton

PAGES = sorted((ROOT / "docs" / "kubernetes").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
# What KubeRay makes of a RayService, by its naming.
KUBERAYS = {("svc", "baton-head-svc"), ("rayservice", "baton")}


def commands(pages: Iterable[Path] = PAGES) -> list[str]:
    """Every line of a plain code block; continued lines joined."""
    found = []
    for page in pages:
        for language, text in FENCE.findall(page.read_text()):
            if not language:
                found += text.replace("\\\n", " ").strip().splitlines()
    return found


def files() -> dict[str, str]:
    """The YAML files that the pages show, by the name in their first line."""
    blocks = [text for page in PAGES for _, text in FENCE.findall(page.read_text())]
    named = [(re.match(r"# (\S+\.yaml)\n", text), text) for text in blocks]
    return {match[1]: text for match, text in named if match}


@functools.cache
def rendered() -> list[Object]:
    trial = str(CHART / "examples" / "trial-cpu.yaml")
    command = [tool("helm"), "template", "baton", str(CHART), "-n", "llm", "-f", trial]
    command += ["--kube-version", "1.33.0"]
    return objects(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def of(program: str) -> list[str]:
    return [line for line in commands() if line.startswith(f"{program} ")]


def everywhere() -> list[str]:
    """Each `baton` command of any page."""
    lines = commands(sorted((ROOT / "docs").rglob("*.md")))
    return [line for line in lines if line.startswith("baton ")]


def test_every_program_is_one_that_is_checked() -> None:
    assert {line.split()[0] for line in commands()} == {"helm", "kubectl", "docker", "baton"}


@pytest.mark.parametrize("line", of("helm"))
def test_helm(line: str, tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    arguments = shlex.split(line)[1:]
    options = {o for o in arguments if o.startswith("-")}
    shown = subprocess.run([tool("helm"), arguments[0], "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert all(option in shown.stdout for option in options)
    assert arguments[1] == "baton"
    assert "llm" in arguments
    if arguments[0] in ("install", "upgrade", "template"):
        given = [a for a in arguments[1:] if a != "--create-namespace"]
        done = subprocess.run(
            [tool("helm"), "template", "--kube-version", "1.33.0", *given],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", of("kubectl"))
def test_kubectl(line: str) -> None:
    found = rendered()
    names = {(one["kind"].lower(), one["metadata"]["name"]) for one in found} | KUBERAYS
    short = {"svc": "service"}
    for kind, name in re.findall(r"\b(svc)/([\w-]+)", line):
        assert (short[kind], name) in names | {("service", n) for _, n in KUBERAYS}
    for kind, name in re.findall(r"\b(rayservice) (\w+)", line):
        assert (kind, name) in names
    pods = pod_templates(found).values()
    for key, value in re.findall(r"-l ([\w./-]+)=(\S+)", line):
        assert any(pod["metadata"]["labels"].get(key) == value for pod in pods)
    for local, remote in re.findall(r" (\d+):(\d+)$", line):
        (service,) = of_kind(found, "Service")
        assert int(remote) in {p["port"] for p in service["spec"]["ports"]}
        assert int(local) == 8000
    for name in re.findall(r"create secret generic (\S+)", line):
        values = "".join(path.read_text() for path in CHART.glob("examples/*.yaml"))
        assert name in values


@pytest.mark.parametrize("line", of("docker"))
def test_docker(line: str) -> None:
    arguments = shlex.split(line)
    assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
    repository, _, tag = arguments[arguments.index("-t") + 1].partition(":")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert repository in {values["images"][kind]["repository"] for kind in ("gateway", "worker")}
    assert tag == yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]


@pytest.mark.parametrize("line", sorted(set(everywhere())))
def test_baton(line: str) -> None:
    """Its options exist; tests/integration/test_kuberay.py runs those of the Kubernetes pages."""
    arguments = shlex.split(line)[1:]
    group = isinstance(baton.get_command(click.Context(baton), arguments[0]), click.Group)
    shown = CliRunner().invoke(baton, [*arguments[: 1 + group], "--help"])
    assert shown.exit_code == 0
    assert all(option in shown.output for option in arguments if option.startswith("--"))


def test_links_lead_somewhere() -> None:
    pages = [*PAGES, *(ROOT / "docs" / name for name in ("runbook.md", "profiles.md"))]
    for page in [*pages, CHART / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)
