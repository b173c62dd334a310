"""Alerts: rules that Prometheus takes, each fires on its case and has an entry in the runbook.
Dashboards: queries that Prometheus can parse.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.deploy.finding import CHART, ROOT, tool
from tests.deploy.monitoring import alerts, dashboard_queries, dashboards, rendered_rules
from tests.deploy.rendering import objects, of_kind, render

from baton.protos.errors import BatonError

CASES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "alert_cases.yaml").read_text())
JOB = "llm/everything-gateway"


def promtool(*arguments: str) -> None:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rendered_rules()))
    promtool("check", "rules", str(tmp_path / "rules.yaml"))


def test_the_jobs_name_is_that_of_the_pod_monitor() -> None:
    found = objects(render(CHART / "ci" / "everything.yaml"))
    names = {f"llm/{one['metadata']['name']}" for one in of_kind(found, "PodMonitor")}
    text = yaml.safe_dump(rendered_rules(), width=10_000)
    assert JOB in names
    assert set(re.findall(r'job="([^"]*)"', text)) == names
    assert not re.search(r"\b(TTFT_SECONDS|ITL_SECONDS|NAMESPACE|GATEWAY_PODS|RAY_PODS)\b", text)


def job_of(name: str) -> str:
    return JOB.replace("-gateway", "-ray") if name.startswith("ray_") else JOB


def series(case: dict[str, Any]) -> list[dict[str, str]]:
    """A case's series as those of their jobs."""
    return [
        {"series": name.replace("{", f'{{job="{job_of(name)}", ', 1), "values": values}
        for name, values in case["series"].items()
    ]


def test_each_fires_on_its_case_and_names_the_runbook(tmp_path: Path) -> None:
    """One run of promtool for all, whose complaint has the alert's name."""
    rules = rendered_rules()
    (group,) = rules["groups"]
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"].endswith(f"/baton#{rule['alert'].lower()}")
    # What a summary says depends on values; that it is a template that runs is shown by firing.
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = [case_of(rule["alert"]) for rule in group["rules"]]
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests})
    )
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def case_of(alert: str) -> dict[str, Any]:
    """Quiet after a minute, firing when its case says so."""
    case = CASES[alert]
    query = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    return {
        "interval": "1m",
        "input_series": series(case),
        "promql_expr_test": [
            {"expr": query, "eval_time": time, "exp_samples": [{"labels": "{}", "value": n}]}
            for time, n in (("1m", 0), (case["at"], 1))
        ],
    }


def test_a_healthy_cluster_is_quiet(tmp_path: Path) -> None:
    healthy = {
        'up{pod="g0"}': "1x60",
        'ray_baton_pool_target_replicas{pool="decode"}': "1x60",
        'ray_baton_pool_target_replicas{pool="prefill"}': "0x60",
        'baton_requests_total{outcome="ok"}': "0+100x60",
        'baton_plans_total{kind="local", reason="cost"}': "0+100x60",
        'baton_tenant_waiting{tenant="a"}': "1x60",
        'baton_tenant_started_total{tenant="a"}': "0+100x60",
        'baton_tenant_wait_seconds_total{tenant="a"}': "0+10x60",
        'baton_worker_report_age_seconds{worker="d0", role="decode"}': "0.5x60",
        'baton_worker_kv_blocks{worker="d0", role="decode"}': "100x60",
        'baton_worker_kv_free_blocks{worker="d0", role="decode"}': "50x60",
        'baton_worker_kv_blind{worker="d0", role="decode"}': "0x60",
        'baton_worker_queued_prefill_tokens{worker="d0", role="decode"}': "2000x60",
        'baton_model_prefill_seconds{worker="d0", role="decode"}': "0.1x60",
        'baton_model_error_ratio{worker="d0", kind="decode"}': "0.1x60",
        'baton_ttft_seconds_bucket{le="1.0"}': "0+100x60",
        'baton_ttft_seconds_bucket{le="+Inf"}': "0+100x60",
        'baton_itl_seconds_bucket{le="0.1"}': "0+100x60",
        'baton_itl_seconds_bucket{le="+Inf"}': "0+100x60",
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rendered_rules()))
    test = {
        "rule_files": ["rules.yaml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": series({"series": healthy}),
                "promql_expr_test": [{"expr": "ALERTS", "eval_time": "59m", "exp_samples": []}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_every_alert_has_an_entry_in_the_runbook_and_a_case() -> None:
    names = [rule["alert"] for rule in alerts()]
    text = (ROOT / "docs" / "runbook.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.M) == names
    assert sorted(CASES) == sorted(names)
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_the_failures_that_alert_are_error_codes() -> None:
    def codes(cls: type[BatonError]) -> set[str]:
        return {cls.default_code}.union(*map(codes, cls.__subclasses__()))

    (rule,) = [r for r in alerts() if r["alert"] == "BatonRequestsFail"]
    named = re.search(r'outcome=~"([^"]*)"', rule["expr"])
    assert named
    assert set(named[1].split("|")) <= codes(BatonError)


def test_prometheus_parses_the_dashboards_queries(tmp_path: Path) -> None:
    known = {"$namespace": "llm", "$__rate_interval": "1m"}
    rules = []
    for i, query in enumerate(dashboard_queries(dashboards().values())):
        for name, value in known.items():
            query = query.replace(name, value)
        assert "$" not in query
        rules.append({"record": f"query{i}", "expr": query})
    text = yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]})
    (tmp_path / "queries.yaml").write_text(text)
    promtool("check", "rules", str(tmp_path / "queries.yaml"))


def test_dashboards_are_whole() -> None:
    boards = dashboards()
    assert {name: board["uid"] for name, board in boards.items()} == {n: n for n in boards}
    for board in boards.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        assert all(panel["title"] and panel["targets"] for panel in board["panels"])
        # No panel lies on another.
        cells = [
            (x, y)
            for p in (panel["gridPos"] for panel in board["panels"])
            for x in range(p["x"], p["x"] + p["w"])
            for y in range(p["y"], p["y"] + p["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24
