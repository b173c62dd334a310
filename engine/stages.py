"""How long each stage of a start takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from baton.protos.clock import Clock


class Stages:
    """Seconds by the name of a stage, in the order in which they ran."""

    def __init__(self, clock: Clock) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is inside; a stage that runs twice adds up."""
        started_s = self._clock.now_s()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock.now_s() - started_s

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
