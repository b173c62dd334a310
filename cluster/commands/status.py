"""`baton status`: the workers as a gateway sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from baton.cluster.client import Endpoint, read_workers
from baton.cluster.options import endpoint_options
from baton.protos.errors import BatonError

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@endpoint_options
@click.option("--once", is_flag=True, help="Print one table and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and exit.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 60.0), default=1.0, help="Seconds between updates."
)
def command(endpoint: Endpoint, once: bool, as_json: bool, interval: float) -> None:
    """Show every worker that the gateway at --url knows: role, state, queue, running requests, KV
    use.

    The table is live until Ctrl-C. Exits with 1 when the gateway cannot be reached at first.

    Columns: requests that RUN and WAIT; QUEUED prompt tokens; the share of KV blocks in use;
    PREFILL tokens a second and the time of one decode STEP, both as moving averages; AGE of the
    last report.
    """
    workers = read_workers(endpoint)
    if as_json:
        click.echo(json.dumps({"workers": workers}))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once:
        console.print(table(workers))
        return
    try:
        with Live(table(workers), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(_current(endpoint), refresh=True)
    except KeyboardInterrupt:
        return


def _current(endpoint: Endpoint) -> Any:
    try:
        return table(read_workers(endpoint))
    except BatonError as error:
        return f"{error.message} Trying again."


def table(workers: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each worker."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("WORKER", "ROLE", "STATE"):
        grid.add_column(name, no_wrap=True)
    for name in ("RUN", "WAIT", "QUEUED", "KV", "PREFILL", "STEP", "AGE"):
        grid.add_column(name, justify="right", no_wrap=True)
    for worker in workers:
        grid.add_row(*_row(worker))
    return grid


def _row(worker: Mapping[str, Any]) -> list[str]:
    load = worker["load"]
    total = load["total_blocks"]
    used = f"{(total - load['free_blocks']) / total:.0%}" if total else "-"
    rate, step_s = load["prefill_tokens_per_s"], load["decode_step_s"]
    age_s = worker["age_s"]
    return [
        worker["worker_id"],
        worker["role"],
        worker["state"],
        str(load["num_running"]),
        str(load["num_waiting"]),
        str(load["queued_prefill_tokens"]),
        used,
        f"{rate:,.0f}/s" if rate else "-",
        f"{step_s * 1000:.1f} ms" if step_s else "-",
        "never" if age_s is None else f"{age_s:.1f} s",
    ]
