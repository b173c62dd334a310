"""`baton profile`: what a live worker's steps spend their time on."""

from __future__ import annotations

from pathlib import Path

import click

from baton.cluster.client import Endpoint, post_for_file
from baton.cluster.options import endpoint_options
from baton.protos.errors import ConfigError

# What writing and fetching a trace may take beside recording it.
FETCH_S = 150.0


@click.command()
@click.argument("worker")
@endpoint_options
@click.option(
    "--seconds",
    type=click.FloatRange(0.0, 60.0, min_open=True),
    default=10.0,
    show_default=True,
    help="Stop after so long.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="Stop after so many steps, if they come first.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File to write. Default: WORKER.trace.json.gz here.",
)
def command(
    worker: str, endpoint: Endpoint, seconds: float, steps: int, output: Path | None
) -> None:
    """Record the next steps of WORKER, of either pool, with torch's profiler, and write the trace
    to a file for https://ui.perfetto.dev.

    WORKER is an id of `baton status`, or how only one of them begins. Its steps are slower
    meanwhile. Needs the key of a tenant with `admin: true` where keys are configured.
    """
    body = {"worker": worker, "seconds": seconds, "steps": steps}
    answer = post_for_file(endpoint, "/baton/profile", body, seconds + FETCH_S)
    path = output or Path(f"{answer.headers['x-baton-worker']}.trace.json.gz")
    try:
        path.write_bytes(answer.content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", param="output") from error
    size = f"{len(answer.content) / 1e6:.1f} MB"
    click.echo(f"{answer.headers['x-baton-steps']} steps are in {path} ({size}).")
    click.echo("Open it in https://ui.perfetto.dev, or chrome://tracing.")
