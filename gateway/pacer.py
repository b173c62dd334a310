"""Larger chunks when the event loop is late, so that a busy gateway gets ahead instead of
behind.
"""

from __future__ import annotations

import asyncio

_PROBE_S = 0.02
_SMOOTHING = 0.2
# Lateness below this is one burst of streams being served: no reason to hold anything back.
_TOLERATED_LAG_S = 0.005
_PAUSE_PER_LAG = 2.0
_MAX_PAUSE_S = 0.1


class Pacer:
    """How long a stream should pause after a chunk: 0 in a gateway that keeps up.

    Most of a chunk's cost is its write to the socket, whatever its size. While a stream pauses, its
    tokens gather, and go out as one chunk. The pause follows the loop's mean lateness, which falls
    as there are fewer chunks: the two settle where the gateway just keeps up.
    """

    def __init__(self) -> None:
        self.pause_s = 0.0
        self._mean_lag_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to measure the running loop."""
        self._task = asyncio.create_task(self._probe())

    def close(self) -> None:
        """Ends the measurement."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def observe(self, lag_s: float) -> None:
        """One measurement of how late the loop ran something."""
        self._mean_lag_s += _SMOOTHING * (lag_s - self._mean_lag_s)
        late = self._mean_lag_s > _TOLERATED_LAG_S
        self.pause_s = min(_MAX_PAUSE_S, _PAUSE_PER_LAG * self._mean_lag_s) if late else 0.0

    async def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _PROBE_S
            await asyncio.sleep(_PROBE_S)
            self.observe(max(0.0, loop.time() - due_s))
