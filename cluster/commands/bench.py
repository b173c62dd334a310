"""`baton bench`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from baton.cluster.bench.load import Run, Target, find_target, offer
from baton.cluster.bench.report import build_report, tables
from baton.cluster.bench.workload import Span, Workload
from baton.cluster.client import Endpoint
from baton.cluster.options import endpoint_options

DEFAULT_NUM_REQUESTS = 100


@click.group()
def command() -> None:
    """Measure a running server."""


@command.command()
@endpoint_options
@click.option("--model", help="Model to ask. Default: the first that the server lists.")
@click.option(
    "--request-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a second, at random times (Poisson). Default: as --concurrency allows.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 65536),
    default=64,
    show_default=True,
    help="Most requests under way at once; arrivals beyond it wait and are reported as late.",
)
@click.option("--num-requests", type=click.IntRange(1), help="Requests to send. Default 100.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds during which requests are sent, instead of --num-requests.",
)
@click.option("--input-len", default="256", show_default=True, help="Prompt tokens: N or LOW:HIGH.")
@click.option("--output-len", default="64", show_default=True, help="Output tokens: N or LOW:HIGH.")
@click.option(
    "--shared-prefix",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of each prompt that all prompts begin with: what a prefix cache can save.",
)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds after which a request counts as failed.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and prompts.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report here.")
def serve(endpoint: Endpoint, model: str | None, json_path: Path | None, **options: Any) -> None:
    """Send completions to the server at --url and measure latency and throughput.

    Prompts are random tokens of the server's own vocabulary; outputs have exactly --output-len
    tokens where the server honours ignore_eos (Baton and vLLM do). Reported are time to first
    token, time between events, time per output token and per request, as mean, p50, p90, p95, p99
    and maximum; tokens and requests a second; and every reason for which requests failed, with its
    count. Ctrl-C ends the run and reports what was measured. Exits with 1 when no request
    succeeded.
    """
    workload = make_workload(**options)
    target = find_target(endpoint, model)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    run = measure(target, workload)
    report = build_report(target, workload, run, when)
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    from rich.console import Console

    for table in tables(report):
        Console().print(table)
    if not report["results"]["num_ok"]:
        raise SystemExit(1)


@command.command()
@click.option(
    "--connector",
    "connectors",
    type=click.Choice(["nixl", "nccl", "lmcache"]),
    multiple=True,
    default=("nixl",),
    show_default=True,
    help="What moves the blocks; may be given more than once.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Of pushes of 64 MiB; smaller ones are repeated three times as often.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows here.")
def kv(connectors: tuple[str, ...], device: str, repeats: int, json_path: Path | None) -> None:
    """Measure how fast KV blocks move between two processes of this machine.

    Needs no server. For each connector: pushes of 64 KiB to 64 MiB, as scattered or adjacent blocks
    of three models, alone or eight at once, and between unlike pools (tensor-parallel sizes, block
    sizes, FP8). Beside each stand the bare transport with the same bytes in the same run, memcpy,
    and how long a push takes. Ctrl-C ends it.
    """
    from baton.cluster.bench.kv import run
    from baton.cluster.bench.kv_table import line

    rows = []
    for connector in connectors:
        for row in run(connector, device, repeats):
            click.echo(line(row))
            rows.append(row)
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def make_workload(
    *, num_requests: int | None, duration: float | None, timeout: float, **options: Any
) -> Workload:
    """The workload that the options describe. Raises ConfigError."""
    if num_requests is None and duration is None:
        num_requests = DEFAULT_NUM_REQUESTS
    for name in ("input_len", "output_len"):
        options[name] = Span.parse(options[name])
    return Workload(num_requests=num_requests, duration_s=duration, timeout_s=timeout, **options)


def measure(target: Target, workload: Workload) -> Run:
    """Runs the load on an event loop of its own; the first Ctrl-C ends it, keeping what was
    measured.
    """
    import uvloop

    run = Run()

    async def work() -> None:
        task = asyncio.ensure_future(offer(target, workload, run))

        def stop() -> None:
            run.interrupted = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    uvloop.run(work())
    return run
