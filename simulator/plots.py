"""Pictures of what was simulated: PNG files and one HTML page that holds them all.

Needs matplotlib (the extra `sim`), which is imported when a picture is drawn.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from baton.protos.errors import ConfigError
from baton.simulator.outcome import Outcome
from baton.simulator.planner import FleetPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
img{max-width:100%;height:auto}table{border-collapse:collapse;margin:1.5rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}
"""


class Picture(NamedTuple):
    """A file's name without its ending, what it shows, and the PNG itself."""

    name: str
    caption: str
    png: bytes


def plot_policies(
    outcomes: Sequence[Outcome], ttft_slo_s: float, itl_slo_s: float
) -> list[Picture]:
    """Goodput by policy, and how long first tokens and the following ones took."""
    return [
        _goodput(outcomes),
        _curves(
            "ttft",
            "Time to first token by share of requests",
            "seconds to first token",
            {outcome.policy: outcome.ttft_curve for outcome in outcomes},
            ttft_slo_s,
        ),
        _curves(
            "itl",
            "Mean time between a request's tokens by share of requests",
            "seconds between tokens",
            {outcome.policy: outcome.itl_curve for outcome in outcomes},
            itl_slo_s,
        ),
    ]


def plot_frontier(plan: FleetPlan, price: float, target: float) -> Picture:
    """Share of requests within SLOs against price: every fleet that was tried, and the best."""
    figure, axes = _axes()
    tried = [(sized.workers * price, sized.outcome.attainment) for sized in plan.tried]
    axes.scatter(*zip(*tried, strict=True), color="#b8b8b8", label="tried")
    frontier = [(sized.workers * price, sized.outcome.attainment) for sized in plan.frontier()]
    axes.plot(*zip(*frontier, strict=True), marker="o", label="best split of each size")
    for sized in plan.frontier():
        axes.annotate(
            f"{sized.prefill}+{sized.decode}",
            (sized.workers * price, sized.outcome.attainment),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
        )
    axes.axhline(target, color="#444444", linestyle="--", label=f"target {target:.0%}")
    axes.set_xlabel("price of an hour (prefill + decode workers)")
    axes.set_ylabel("share of requests within both SLOs")
    axes.set_ylim(0, 1.08)
    axes.legend(loc="lower right")
    return Picture("frontier", "Price against requests served within SLOs", _png(figure))


def page(title: str, pictures: Sequence[Picture], rows: Sequence[Mapping[str, Any]]) -> str:
    """A self-contained HTML page: the rows as a table, the pictures inside it."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
    ]
    if rows:
        parts.append(_table(rows))
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        caption = html.escape(picture.caption)
        parts.append(f'<h2>{caption}</h2><img alt="{caption}" src="data:image/png;base64,{data}">')
    return "\n".join(parts) + "</html>\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _goodput(outcomes: Sequence[Outcome]) -> Picture:
    figure, axes = _axes()
    names = [outcome.policy for outcome in outcomes]
    values = [outcome.goodput_rps for outcome in outcomes]
    bars = axes.barh(names[::-1], values[::-1])
    shares = [f" {outcome.goodput_rps:.2f}/s ({outcome.attainment:.0%})" for outcome in outcomes]
    axes.bar_label(bars, shares[::-1])
    axes.set_xlim(0, 1.25 * max([*values, 1e-9]))
    axes.set_xlabel("requests per second within both SLOs (share of all)")
    return Picture("goodput", "Goodput by policy", _png(figure))


def _curves(
    name: str, caption: str, label: str, curves: Mapping[str, Sequence[float]], slo_s: float
) -> Picture:
    figure, axes = _axes()
    for policy, values in curves.items():
        if values:
            shares = [index / (len(values) - 1) for index in range(len(values))]
            axes.plot(values, shares, label=policy)
    axes.axvline(slo_s, color="#444444", linestyle="--", label=f"SLO {slo_s:g} s")
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("share of requests that took no longer")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")
    return Picture(name, caption, _png(figure))


def _axes() -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "plots need matplotlib: pip install 'baton-serve[sim]'", param="out"
        ) from None
    # No pyplot: it keeps every figure in a global list, and wants a display's backend.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
