"""What a simulated worker is told when it is made: its limits, and who hears of what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from baton.simulator.sequence import Sequence

if TYPE_CHECKING:
    from baton.simulator.worker import SimWorker


class Owner(Protocol):
    """Who is told what an engine did."""

    def computed(self, worker: SimWorker, sequence: Sequence) -> None:
        """A held prompt's KV is complete up to `num_computed`."""

    def first_token(self, worker: SimWorker, sequence: Sequence) -> None: ...
    def finished(self, worker: SimWorker, sequence: Sequence) -> None: ...
    def room(self, worker: SimWorker) -> None:
        """Memory has come free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShape:
    """Limits of an engine."""

    kv_capacity_tokens: int
    max_running: int
    block_tokens: int
