"""A run as JSON and as a table."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from baton import __version__
from baton.cluster.bench.load import Run, Target
from baton.cluster.bench.statistics import PERCENTILES, Figures, Summary, figures
from baton.cluster.bench.workload import Workload

if TYPE_CHECKING:
    from rich.table import Table

# Distinct reasons of failure that a report lists; the others are counted together.
MAX_REASONS = 10


def build_report(target: Target, workload: Workload, run: Run, when: str) -> dict[str, Any]:
    """The JSON document: what was asked for, on which machine, and what was measured.

    Times are milliseconds; `when` is the start as ISO 8601.
    """
    measured = figures(run.samples, max(0.0, run.end_s - run.start_s))
    return {
        "benchmark": "baton bench serve",
        "baton": __version__,
        "when": when,
        "machine": machine(),
        "url": target.endpoint.base,
        "model": target.model,
        "exact_prompt_lengths": target.vocabulary.exact,
        "workload": dataclasses.asdict(workload),
        "interrupted": run.interrupted,
        "num_late": run.num_late,
        "results": _results(measured),
    }


def machine() -> dict[str, Any]:
    """Where the client ran."""
    return {
        "host_cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _results(measured: Figures) -> dict[str, Any]:
    reasons = list(measured.errors.items())
    errors = dict(reasons[:MAX_REASONS])
    rest = sum(count for _, count in reasons[MAX_REASONS:])
    if rest:
        errors["other reasons"] = rest
    return {
        "num_requests": measured.num_requests,
        "num_ok": measured.num_ok,
        "num_failed": measured.num_requests - measured.num_ok,
        "errors": errors,
        "elapsed_s": round(measured.elapsed_s, 4),
        "requests_per_s": round(measured.requests_per_s, 3),
        "output_tokens_per_s": round(measured.output_tokens_per_s, 2),
        "total_tokens_per_s": round(measured.total_tokens_per_s, 2),
        "num_prompt_tokens": measured.num_prompt_tokens,
        "num_cached_tokens": measured.num_cached_tokens,
        "num_output_tokens": measured.num_output_tokens,
        "ttft_ms": _milliseconds(measured.ttft),
        "itl_ms": _milliseconds(measured.itl),
        "tpot_ms": _milliseconds(measured.tpot),
        "e2e_ms": _milliseconds(measured.e2e),
    }


def _milliseconds(summary: Summary | None) -> dict[str, float] | None:
    if summary is None:
        return None
    values = {"mean": summary.mean, "max": summary.max}
    values |= {f"p{percent}": value for percent, value in summary.percentiles.items()}
    return {"count": summary.count} | {k: round(v * 1000, 3) for k, v in values.items()}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Two tables for the terminal: totals, and latencies in milliseconds."""
    return [_totals(report), _latencies(report["results"])]


def _totals(report: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    results = report["results"]
    totals = Table(title=f"{report['model']} at {report['url']}", title_justify="left")
    totals.add_column("TOTAL")
    totals.add_column("", justify="right")
    totals.add_row("requests answered", f"{results['num_ok']} of {results['num_requests']}")
    totals.add_row("time", f"{results['elapsed_s']:.2f} s")
    totals.add_row("requests", f"{results['requests_per_s']:.2f}/s")
    totals.add_row("output tokens", f"{results['output_tokens_per_s']:,.1f}/s")
    totals.add_row("prompt and output tokens", f"{results['total_tokens_per_s']:,.1f}/s")
    totals.add_row(
        "prompt tokens from cache",
        f"{results['num_cached_tokens']:,} of {results['num_prompt_tokens']:,}",
    )
    if report["num_late"]:
        totals.add_row("late: concurrency reached", str(report["num_late"]))
    for reason, count in results["errors"].items():
        totals.add_row(Text(f"failed: {reason}", style="red"), str(count))
    return totals


def _latencies(results: Mapping[str, Any]) -> Table:
    from rich.table import Table

    columns = ("mean", *(f"p{p}" for p in PERCENTILES), "max")
    latencies = Table(title="milliseconds", title_justify="left")
    latencies.add_column("")
    for column in columns:
        latencies.add_column(column, justify="right")
    names = {
        "ttft_ms": "time to first token",
        "itl_ms": "between events",
        "tpot_ms": "per output token",
        "e2e_ms": "whole request",
    }
    for key, name in names.items():
        if results[key] is not None:
            latencies.add_row(name, *(f"{results[key][column]:,.2f}" for column in columns))
    return latencies
