"""`baton drain`: what a Kubernetes pod runs before it is stopped."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0.0, min_open=True),
    default=120.0,
    show_default=True,
    help="The node may be gone after so many seconds; workers on it stop in time before that.",
)
@click.option(
    "--ray-address",
    envvar="RAY_ADDRESS",
    required=True,
    help="host:port of the cluster's head. Default $RAY_ADDRESS.",
)
@click.option("--node-id", default="", help="The node. Default: the one at this machine's address.")
def command(timeout_s: float, ray_address: str, node_id: str) -> None:
    """Take this Ray node out of service: its workers and gateways are replaced elsewhere, finish
    their requests, and stop.

    Returns when nothing of Baton runs here any more, or after --timeout-s. On a head node it waits
    for the other nodes that are leaving.
    """
    from ray.util import get_node_ip_address

    from baton.cluster.node_drain import NodeDrain, RayNodeTable, find_node

    table = RayNodeTable(ray_address)
    node = find_node(table, node_id, "" if node_id else get_node_ip_address())
    if NodeDrain(table).run(node, timeout_s):
        click.echo(f"The node {node.node_id} has nothing left to do.")
    else:
        click.echo(f"The node {node.node_id} is not free after {timeout_s:g} s.", err=True)
