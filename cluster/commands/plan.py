"""`baton plan`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from baton.cluster.commands.simulate import fleet_options, make_config, write_report
from baton.protos.errors import ConfigError
from baton.simulator.planner import FleetPlan, Sized, plan_fleet
from baton.simulator.plots import plot_frontier
from baton.simulator.shapes import GPUS, ModelShape, times_for
from baton.simulator.trace import read_trace, scaled


@click.command()
@fleet_options
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A model's folder or config.json, whose times are scaled from those measured of 8B on "
    "one H100. Default: that model, or what --model-times says.",
)
@click.option(
    "--gpu",
    type=click.Choice(list(GPUS)),
    default="h100",
    show_default=True,
    help="What --model runs on.",
)
@click.option(
    "--gpu-rate",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Price of a GPU for an hour, in any currency.",
)
@click.option(
    "--target",
    type=float,
    default=0.95,
    show_default=True,
    help="Share of requests that shall be served within both SLOs.",
)
@click.option(
    "--max-workers", type=click.IntRange(1, 1024), default=32, show_default=True, help="Most tried."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for plots and report.html.")
def command(
    model: Path | None,
    gpu: str,
    gpu_rate: float,
    target: float,
    max_workers: int,
    as_json: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Find the cheapest numbers of prefill and decode workers that serve a trace within its SLOs.

    Fleets of growing size are simulated with the policy `cost`; the answer is the first that
    serves --target of all requests within --ttft-slo and --itl-slo. Exits with 1 when none of up
    to --max-workers does.
    """
    source, rate_scale = options.pop("source"), options.pop("rate_scale")
    if model is not None and options["model_times"] is not None:
        raise ConfigError("give --model or --model-times, not both", param="model")
    config = make_config(prefill=1, decode=1, **options)
    if model is not None:
        times, kv_tokens = times_for(ModelShape.read(model), GPUS[gpu], config.gpus_per_worker)
        config = replace(config, times=times, kv_capacity_tokens=kv_tokens)
    trace = scaled(read_trace(source, seed=config.seed), rate_scale)
    price = gpu_rate * config.gpus_per_worker

    def say(sized: Sized) -> None:
        if not as_json:
            click.echo(_line(sized, price))

    found = plan_fleet(trace, config, target=target, max_workers=max_workers, say=say)
    if out is not None:
        write_report(out, f"Plan for {trace.name}", [plot_frontier(found, price, target)], [])
    if as_json:
        click.echo(json.dumps(_answer(found, price, target)))
    elif found.best is not None:
        click.echo(f"cheapest: {_line(found.best, price)}")
    if found.best is None:
        raise ConfigError(
            f"no fleet of at most {max_workers} workers serves {target:.0%} of {trace.name} within "
            "its SLOs: allow more workers, or slower answers",
            param="max-workers",
        )


def _line(sized: Sized, price: float) -> str:
    outcome = sized.outcome
    ttft = "-" if outcome.ttft_p95 is None else f"{outcome.ttft_p95:.2f} s"
    return (
        f"{sized.prefill} prefill + {sized.decode} decode, {sized.workers * price:g} an hour: "
        f"{outcome.attainment:.1%} within SLOs, TTFT p95 {ttft}"
    )


def _answer(found: FleetPlan, price: float, target: float) -> dict[str, Any]:
    def row(sized: Sized) -> dict[str, Any]:
        return {
            "prefill": sized.prefill,
            "decode": sized.decode,
            "price_per_hour": round(sized.workers * price, 6),
            "attainment": round(sized.outcome.attainment, 6),
            "goodput_rps": round(sized.outcome.goodput_rps, 6),
            "ttft_p95": sized.outcome.ttft_p95,
            "itl_p95": sized.outcome.itl_p95,
        }

    return {
        "target": target,
        "best": None if found.best is None else row(found.best),
        "frontier": [row(sized) for sized in found.frontier()],
        "tried": [row(sized) for sized in found.tried],
    }
