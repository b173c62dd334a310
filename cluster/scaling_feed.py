"""What a scaling policy inside Serve's controller hears from the directory, without ever waiting
for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import deque

from ray.util.metrics import Gauge

from baton.cluster.config import DirectoryConfig
from baton.cluster.directory_actor import RayDirectoryClient
from baton.cluster.scaling_board import ScalingInputs
from baton.protos.errors import BatonError
from baton.router.scaling_signals import ScalingDecision

log = logging.getLogger(__name__)
POLL_S = 1.0
# After this many seconds without an answer nothing is known of the gateways.
STALE_S = 15.0


class ScalingFeed:
    """Reads the directory once a second on a thread of its own, which ends with this object."""

    def __init__(self, application: str, directory: DirectoryConfig) -> None:
        self._inputs = ScalingInputs()
        self._heard_s = float("-inf")
        self._target = Gauge(
            "baton_pool_target_replicas",
            description="Replicas that autoscaling asks for.",
            tag_keys=("pool",),
        )
        self._outbox: deque[ScalingDecision] = deque(maxlen=16)
        thread = threading.Thread(
            target=_follow,
            args=(weakref.ref(self), application, directory),
            name="baton-scaling",
            daemon=True,
        )
        thread.start()

    def inputs(self) -> ScalingInputs:
        """What was last heard; without demand when that is long ago."""
        if time.monotonic() - self._heard_s > STALE_S:
            return ScalingInputs(applied=self._inputs.applied)
        return self._inputs

    def tell(self, decision: ScalingDecision) -> None:
        """Passes a decision on, with the next reading, and its target to Ray's metrics."""
        self._target.set(decision.applied, {"pool": decision.role.value})
        self._outbox.append(decision)

    async def exchange(self, client: RayDirectoryClient) -> None:
        """One reading. Raises BatonError when the directory is away."""
        while self._outbox:
            await client.report_decision(self._outbox.popleft())
        self._inputs = await client.scaling_inputs()
        self._heard_s = time.monotonic()


def _follow(feed: weakref.ref[ScalingFeed], application: str, directory: DirectoryConfig) -> None:
    asyncio.run(_poll(feed, application, directory))


async def _poll(
    reference: weakref.ref[ScalingFeed], application: str, directory: DirectoryConfig
) -> None:
    client = RayDirectoryClient(application, directory)
    while (feed := reference()) is not None:
        try:
            await feed.exchange(client)
        except BatonError as error:
            log.warning("scaling goes on without the directory: %s", error)
        del feed
        await asyncio.sleep(POLL_S)
