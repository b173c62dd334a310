"""How long pushes of KV take: what the router learns transfers from."""

from __future__ import annotations

import dataclasses
from collections import deque

from baton.protos.types import TransferSample, WorkerLoad

_MAX_SAMPLES = 32


class PushMeter:
    """The latest pushes since the last report, and all their bytes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._samples: deque[TransferSample] = deque(maxlen=_MAX_SAMPLES)

    def observe(self, decode: str, num_bytes: int, seconds: float) -> None:
        """A push to that decode worker, from its posting until its data was there."""
        self._num_bytes += num_bytes
        self._samples.append(TransferSample(decode, num_bytes, seconds))

    def add_samples(self, load: WorkerLoad) -> WorkerLoad:
        """The load with what was measured since the last call."""
        samples = tuple(self._samples)
        self._samples.clear()
        return dataclasses.replace(load, transfers=samples, num_pushed_bytes=self._num_bytes)
