"""A gateway that keeps up pauses nobody; one that is late makes larger chunks."""

from __future__ import annotations

import asyncio
import time

from baton.gateway.pacer import Pacer


def test_pause_follows_lateness_and_ends_with_it() -> None:
    pacer = Pacer()
    for _ in range(50):
        pacer.observe(0.004)
    assert pacer.pause_s == 0.0
    for _ in range(50):
        pacer.observe(0.02)
    assert 0.03 < pacer.pause_s <= 0.04
    for _ in range(50):
        pacer.observe(10.0)
    assert pacer.pause_s == 0.1
    for _ in range(200):
        pacer.observe(0.0)
    assert pacer.pause_s == 0.0


async def test_it_measures_the_loop_that_it_runs_in() -> None:
    pacer = Pacer()
    pacer.start()
    for _ in range(8):
        await asyncio.sleep(0.012)
        time.sleep(0.05)  # noqa: ASYNC251 -- the lateness to be seen
    assert pacer.pause_s > 0
    pacer.close()
