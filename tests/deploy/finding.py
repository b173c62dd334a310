"""Where the tools and schemas of the chart's tests are.

What is missing skips a test and says why; under CI it fails.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "baton"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml")) + sorted((CHART / "ci").glob("*.yaml"))
# `make test` puts them there (tests/deploy/tools/install.sh).
TOOLS = Path(os.environ.get("BATON_CHART_TOOLS", Path(sys.prefix) / "tools"))


def tool(name: str) -> str:
    """The path of a program."""
    own = TOOLS / name
    found = str(own) if own.exists() else shutil.which(name)
    return found or missing(f"{name} is neither in {TOOLS} nor on PATH: run make test")


def crd_folder() -> Path:
    """The folder with the definitions of KubeRay, Gateway API and prometheus-operator."""
    given = os.environ.get("BATON_CRDS")
    places = [Path(given)] if given else [p / "shared/kubernetes/crds" for p in ROOT.parents]
    found = next((place for place in places if place.is_dir()), None)
    return found or missing(
        f"no CRDs in {' or '.join(map(str, places))}: set BATON_CRDS to a folder of them"
    )


def module(name: str) -> Any:
    """A package of the `test` extra, some of which not every platform has."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing(f"{error}: run make test")


def missing(reason: str) -> NoReturn:
    """Ends the test that cannot run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
