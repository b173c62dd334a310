"""What an operator may set about a gateway's side of the cluster, and where members come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from baton.protos.errors import ConfigError
from baton.protos.types import Member


class Directory(Protocol):
    """Where the fleet learns its members. May raise: the fleet then keeps what it knew."""

    async def members(self) -> Sequence[Member]:
        """The last known members; the fleet asks in the background, never for a request."""


class StaticDirectory:
    """Fixed members; `set_members` is for tests and for whoever edits the list by hand."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    async def members(self) -> Sequence[Member]:
        return self._members

    def set_members(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """Limits and waits of a Fleet, in seconds where they end in `_s`. Raises ConfigError.

    `max_replays` bounds how often one request is submitted again, `no_worker_wait_s` how long it
    waits for a decode worker each time; or `wake_wait_s`, if longer, where the pool may be scaled
    to zero and needs time to come back (0: it never is). A worker that says nothing for
    `lost_after_s` is lost, even while its connection stands: a stopped process must not hold
    requests until clients give up.
    """

    poll_s: float = 0.5
    directory_timeout_s: float = 2.0
    max_replays: int = 3
    no_worker_wait_s: float = 10.0
    wake_wait_s: float = 0.0
    max_generations: int = 4096
    # Requests that wait to be sent to one worker, and the size at which a message holds no more.
    max_pending_submits: int = 4096
    max_write_bytes: int = 4 << 20
    lost_after_s: float = 20.0
    connect_timeout_s: float = 5.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 2.0
    # Requests sent this shortly before a report may have missed it and stay counted as in flight.
    settle_s: float = 0.05
    # File of learned time models, read at the start and kept up to date; empty: none.
    model_times: str = ""
    # Requests whose decisions `baton explain` can show, and a file for all of them; empty: none.
    explained_requests: int = 1000
    decision_log: str = ""

    def __post_init__(self) -> None:
        may_be_zero = {"max_replays", "no_worker_wait_s", "wake_wait_s", "settle_s"}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            if (
                not math.isfinite(value)
                or value < 0
                or (not value and field.name not in may_be_zero)
            ):
                bound = "at least 0" if field.name in may_be_zero else "more than 0"
                raise ConfigError(
                    f"{field.name} is {value}, but must be finite and {bound}", param=field.name
                )

    @property
    def worker_wait_s(self) -> float:
        """How long a request waits while there is no decode worker."""
        return max(self.no_worker_wait_s, self.wake_wait_s)
