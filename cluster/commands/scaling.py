"""`baton scaling`: pool sizes, and why they are what they are."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

import click

from baton.cluster.client import Endpoint, get_json
from baton.cluster.options import endpoint_options


@click.command()
@endpoint_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--last", type=click.IntRange(0, 200), default=10, help="Changes to show.")
def command(endpoint: Endpoint, as_json: bool, last: int) -> None:
    """Show each pool's bounds, policy and newest decision, and the last changes with their reasons.

    A pool with `dry_run` shows what would be done.
    """
    document = get_json(endpoint, "/baton/scaling")
    if as_json:
        click.echo(json.dumps(document))
        return
    for line in report(document, last):
        click.echo(line)


def report(document: Mapping[str, Any], last: int) -> list[str]:
    """The lines for people."""
    latest = {decision["role"]: decision for decision in document["latest"]}
    lines = []
    for name, pool in document["pools"].items():
        bounds = f"{pool['min_replicas']} to {pool['max_replicas']} replicas"
        dry = ", dry run" if pool["scaling"]["dry_run"] else ""
        lines.append(f"{name}: {bounds}, policy {pool['scaling']['policy']}{dry}")
        if name in latest:
            decision = latest[name]
            lines.append(f"  {decision['num_running']} run; {decision['line']}")
        else:
            lines.append("  no decision yet")
    changes = document["changes"][-last:] if last else []
    if changes:
        lines.append("Last changes:")
    for decision in changes:
        moment = datetime.datetime.fromtimestamp(decision["now_s"]).astimezone()
        lines.append(f"  {moment:%Y-%m-%d %H:%M:%S}  {decision['line']}")
    return lines
