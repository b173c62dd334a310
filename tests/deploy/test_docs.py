"""The pages: what their commands are, those that cannot run here, and where their links lead.

`docker build` does not run: base images cannot be had where the tests run. The commands of helm and
kubectl run in tests/deploy/test_commands.py, those of baton in tests/integration/test_kuberay.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from tests.deploy.finding import CHART, ROOT

from baton.cluster.cli import baton

PAGES = sorted((ROOT / "docs" / "kubernetes").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAMS = {"helm", "kubectl", "diff", "docker", "baton"}


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


def of(program: str) -> list[str]:
    return [line for line in commands() if line.startswith(f"{program} ")]


def everywhere() -> list[str]:
    """Each `baton` command of any page."""
    lines = commands(sorted((ROOT / "docs").rglob("*.md")))
    return [line for line in lines if line.startswith("baton ")]


def test_every_program_is_one_that_is_checked() -> None:
    assert {line.split()[0] for line in commands()} == PROGRAMS


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
