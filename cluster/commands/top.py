"""`baton top`: how gateways and their workers fare, live."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

import click

from baton.cluster.client import Endpoint
from baton.cluster.options import endpoints_options
from baton.protos.errors import BatonError

# ANSI: another screen and back, without a cursor; home and clear what is below.
_ENTER, _LEAVE, _HOME = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"


@click.command()
@endpoints_options
@click.option("--once", is_flag=True, help="Print one screen after one interval, and exit.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 60.0), default=2.0, help="Seconds between readings."
)
def command(endpoints: tuple[Endpoint, ...], once: bool, interval: float) -> None:
    """Show requests a second, latencies, tokens, hit rates, plans, pools and workers, as the
    gateways at --url see them together, until Ctrl-C.

    Rates and latencies are those between two readings, beside those since the gateways' start.
    Exits with 1 when one cannot be reached at first. `baton status` shows workers alone.
    """
    from baton.cluster.top.reading import read
    from baton.cluster.top.screen import render

    before, title = read(endpoints), ", ".join(endpoint.base for endpoint in endpoints)
    time.sleep(interval)
    if once:
        click.echo("\n".join(render(before, read(endpoints))))
        return
    click.echo(_ENTER, nl=False)
    try:
        while True:
            try:
                now = read(endpoints)
                _show([title, *render(before, now)])
                before = now
            except BatonError as error:
                _show([title, f"{error.message} Trying again."])
            time.sleep(interval)
    except KeyboardInterrupt:
        return
    finally:
        click.echo(_LEAVE, nl=False)


def _show(lines: Sequence[str]) -> None:
    """As many of them, and as much of each, as the terminal holds."""
    width, height = shutil.get_terminal_size()
    shown = [line[:width] for line in lines[: height - 1]]
    click.echo(_HOME + "\n".join(shown), nl=False)
