"""The queries of the chart's alerts and dashboards, and the metrics that they name."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from tests.deploy.finding import CHART
from tests.deploy.rendering import objects, of_kind, render

SUFFIXES = re.compile(r"_(bucket|sum|count)$")


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


def dashboard_queries() -> list[str]:
    return [
        target["expr"]
        for board in dashboards().values()
        for panel in board["panels"]
        for target in panel["targets"]
    ]


def metrics_named() -> set[str]:
    """Names of `baton_*` in any query, as the text format's TYPE lines have them (those of counters
    end in _total, those of histograms have no suffix).
    """
    queries = [rule["expr"] for rule in alerts()] + dashboard_queries()
    found = {name for query in queries for name in re.findall(r"\bbaton_\w+", query)}
    return {SUFFIXES.sub("", name) for name in found}


def metrics_when_something_is_wrong() -> set[str]:
    """Those that a gateway has only then."""
    return {"baton_kv_events_wrong"}
