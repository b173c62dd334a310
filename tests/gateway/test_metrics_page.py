"""docs/metrics.md says what a gateway exposes, and labels have few values."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = ROOT / "docs" / "generate_metrics.py"
    spec = importlib.util.spec_from_file_location("generate_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_metrics_is_current(generator: ModuleType) -> None:
    assert generator.TARGET.read_text(encoding="utf-8") == generator.document(), (
        "docs/metrics.md is behind the code: run python docs/generate_metrics.py"
    )


def test_every_family_has_a_sample_and_labels_that_the_page_bounds(generator: ModuleType) -> None:
    page = generator.document()
    for family in generator.families():
        assert family.name.startswith("baton_")
        assert family.samples, f"{family.name}: let the generator make one"
        for label in {name for sample in family.samples for name in sample.labels} - {"le"}:
            bounded = page.partition("## Labels")[2]
            assert f"`{label}`" in bounded, f"{family.name}: say which values {label} has"
