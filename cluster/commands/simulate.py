"""`baton simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from baton.protos.errors import ConfigError
from baton.router.config import POLICY_NAMES, RouterConfig
from baton.router.times import H100_8B, ModelTimes
from baton.simulator.admission import SimAdmission
from baton.simulator.config import H100_KV_TOKENS, MAX_RUNNING, SimConfig
from baton.simulator.mixes import MIXES
from baton.simulator.outcome import Outcome
from baton.simulator.plots import Picture, page, plot_policies
from baton.simulator.simulation import ORACLE, simulate
from baton.simulator.trace import read_trace, scaled


def fleet_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `baton simulate` and `baton plan` both want to know."""
    options = (
        click.option(
            "--trace",
            "source",
            required=True,
            help="Mooncake's JSON lines, Azure's CSV, a JSON description of a mix, or "
            f"synthetic:NAME with one of {', '.join(MIXES)}.",
        ),
        click.option(
            "--rate-scale",
            type=float,
            default=1.0,
            show_default=True,
            help="Requests arrive so many times as fast as in the trace.",
        ),
        click.option(
            "--ttft-slo",
            type=float,
            default=2.0,
            show_default=True,
            help="Seconds within which a good request has its first token.",
        ),
        click.option(
            "--itl-slo",
            type=float,
            default=0.05,
            show_default=True,
            help="Seconds between the tokens of a good request, on average.",
        ),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            help="Of synthetic requests and of ties between workers.",
        ),
        click.option(
            "--model-times",
            type=click.Path(path_type=Path),
            help="Times of the model and its workers as JSON. Default: 8B on H100.",
        ),
        click.option(
            "--kv-tokens",
            type=int,
            default=H100_KV_TOKENS,
            show_default=True,
            help="KV tokens that one worker holds.",
        ),
        click.option(
            "--max-running",
            type=int,
            default=MAX_RUNNING,
            show_default=True,
            help="Requests in one worker's batch.",
        ),
        click.option(
            "--gpus-per-worker",
            type=int,
            default=1,
            show_default=True,
            help="What a worker costs, for GPU-hours.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@fleet_options
@click.option(
    "--policy",
    "policies",
    default="cost",
    show_default=True,
    help=f"Routing policies, with commas between: {', '.join(POLICY_NAMES)}; {ORACLE} is cost "
    "that knows how long each answer will be.",
)
@click.option("--prefill", type=int, default=2, show_default=True, help="Prefill workers.")
@click.option("--decode", type=int, default=2, show_default=True, help="Decode workers.")
@click.option(
    "--admission",
    is_flag=True,
    help="Requests wait in the gateway while no worker can begin them soon, as in a live cluster.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse requests whose first token cannot come within so many seconds; means --admission.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per policy, one a line.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for plots and report.html.")
def command(
    policies: str, prefill: int, decode: int, as_json: bool, out: Path | None, **options: Any
) -> None:
    """Send a trace through a simulated cluster, once for each policy.

    Plans are made by the router that serves real requests; the workers are models of how long
    steps, queues, prefix caches and transfers take. Reported are requests per second within both
    SLOs (goodput), percentiles of time to first token and between tokens in seconds, GPU-hours and
    the share of prompts that decode workers computed themselves.
    """
    names = parse_policies(policies)
    source, rate_scale = options.pop("source"), options.pop("rate_scale")
    base = make_config(prefill=prefill, decode=decode, **options)
    trace = scaled(read_trace(source, seed=base.seed), rate_scale)
    outcomes = []
    for name in names:
        policy = "cost" if name == ORACLE else name
        config = replace(base, router=replace(base.router, policy=policy))
        outcome = replace(simulate(trace, config, oracle=name == ORACLE), policy=name)
        outcomes.append(outcome)
        if as_json:
            click.echo(
                json.dumps({"trace": trace.name, "rate_scale": rate_scale} | outcome.to_dict())
            )
    if not as_json:
        show(outcomes)
    if out is not None:
        router = base.router
        title = f"{trace.name} x{rate_scale:g} on {prefill} prefill + {decode} decode workers"
        pictures = plot_policies(outcomes, router.ttft_slo_s, router.itl_slo_s)
        write_report(out, title, pictures, [_row(outcome) for outcome in outcomes])


def parse_policies(text: str) -> list[str]:
    """Names between commas. Raises ConfigError for one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in POLICY_NAMES and name != ORACLE:
            raise ConfigError(
                f"policy is {name!r}, but must be one of {', '.join(POLICY_NAMES)}, {ORACLE}",
                param="policy",
            )
    if not names:
        raise ConfigError("policy names nothing", param="policy")
    return names


def make_config(
    *,
    prefill: int,
    decode: int,
    admission: bool = False,
    deadline: float | None = None,
    model_times: Path | None,
    ttft_slo: float,
    itl_slo: float,
    kv_tokens: int,
    **options: Any,
) -> SimConfig:
    """The configuration that the options describe. Raises ConfigError that names the field."""
    return SimConfig(
        prefill=prefill,
        decode=decode,
        times=H100_8B if model_times is None else load_times(model_times),
        router=RouterConfig(ttft_slo_s=ttft_slo, itl_slo_s=itl_slo),
        kv_capacity_tokens=kv_tokens,
        admission=SimAdmission(deadline_s=deadline) if admission or deadline else None,
        **options,
    )


def load_times(path: Path) -> ModelTimes:
    """Reads ModelTimes' JSON form. Raises ConfigError that names the file."""
    try:
        return ModelTimes.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model times {path}: {error}", param="model-times") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", param="model-times") from None


def write_report(
    folder: Path, title: str, pictures: Sequence[Picture], rows: Sequence[Mapping[str, Any]]
) -> None:
    """PNG files, and report.html with the same pictures inside. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        (folder / "report.html").write_text(page(title, pictures, rows), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"report {folder}: {error}", param="out") from None


def _row(outcome: Outcome) -> dict[str, Any]:
    values = outcome.to_dict()
    del values["reasons"]
    return values


def show(outcomes: list[Outcome]) -> None:
    """Prints one row per policy."""
    from rich.console import Console
    from rich.table import Table

    num_requests = outcomes[0].num_requests
    table = Table(title=f"{num_requests} requests; TTFT in s and ITL in ms: p50 / p95 / p99")
    for column in ("policy", "good/s", "good", "TTFT", "ITL", "GPU h", "local"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for outcome in outcomes:
        ttft = (outcome.ttft_p50, outcome.ttft_p95, outcome.ttft_p99)
        itl = (outcome.itl_p50, outcome.itl_p95, outcome.itl_p99)
        table.add_row(
            outcome.policy,
            f"{outcome.goodput_rps:.3f}",
            f"{outcome.attainment:.1%}",
            " / ".join("-" if value is None else f"{value:.2f}" for value in ttft),
            " / ".join("-" if value is None else f"{1e3 * value:.1f}" for value in itl),
            f"{outcome.gpu_hours:.2f}",
            f"{outcome.local_share:.1%}",
        )
    # Figures that are cut short say nothing: a narrow terminal wraps the lines instead.
    Console(width=max(100, Console().width)).print(table)
