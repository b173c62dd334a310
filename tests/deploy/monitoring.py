"""The queries of the chart's alerts and dashboards, and the metrics that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml
from tests.deploy.finding import CHART
from tests.deploy.rendering import objects, of_kind, render


def rendered_rules() -> dict[str, Any]:
    """The groups of the PrometheusRule as Prometheus reads them."""
    (rule,) = of_kind(objects(render(CHART / "ci" / "everything.yaml")), "PrometheusRule")
    spec: dict[str, Any] = rule["spec"]
    return spec


def alerts() -> list[dict[str, Any]]:
    """As they are written."""
    text = (CHART / "alerts" / "baton.yaml").read_text()
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by its file's name."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(CHART.glob("dashboards/*.json"))}


def dashboard_queries(boards: Iterable[dict[str, Any]]) -> list[str]:
    return [
        target["expr"]
        for board in boards
        for panel in board["panels"]
        for target in panel["targets"]
    ]


def metrics_named(query: str) -> set[str]:
    """The metrics of ours that a query needs."""
    return set(re.findall(r"\b(?:ray_)?baton_\w+", query))
