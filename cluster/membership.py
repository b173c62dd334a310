"""Both ends of the directory, without Ray: a member that keeps itself listed, a reader that stays
current.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from baton.cluster.config import DirectoryConfig
from baton.cluster.directory import GatewayMember, Listing, MemberView, StartFailure
from baton.protos.clock import Clock
from baton.protos.errors import BatonError, UnavailableError
from baton.protos.types import Member
from baton.router.scaling_signals import Demand

log = logging.getLogger(__name__)


class DirectoryClient(Protocol):
    """The directory as a coroutine API. Every call raises UnavailableError while it cannot be
    reached.
    """

    async def heartbeat(self, member: Member | GatewayMember) -> None: ...
    async def leave(self, incarnation: str) -> None: ...
    async def report_failure(self, failure: StartFailure) -> None: ...
    async def listing(self) -> Listing: ...
    async def report_demand(self, gateway_id: str, demand: Demand) -> None: ...


class Membership:
    """Keeps one member listed from `start` to `close`; a directory that is away is tried again and
    again.
    """

    def __init__(
        self, client: DirectoryClient, member: Member | GatewayMember, config: DirectoryConfig
    ) -> None:
        self._client = client
        self._member = member
        self._config = config
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Registers; returns although the directory may be away, since heartbeats go on trying."""
        await _attempt("heartbeat", lambda: self._client.heartbeat(self._member))
        self._task = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """Leaves the directory, so that nobody new comes here. Safe to call twice."""
        if self._task is None:
            return
        await _stop(self._task)
        self._task = None
        await _attempt("leave", lambda: self._client.leave(self._member.incarnation))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            await _attempt("heartbeat", lambda: self._client.heartbeat(self._member))


class DemandReporter:
    """Tells the directory, with every heartbeat, what reaches one gateway: pools are sized by it,
    and one that was scaled to zero is woken.
    """

    def __init__(
        self,
        client: DirectoryClient,
        gateway_id: str,
        demand: Callable[[], Awaitable[Demand]],
        config: DirectoryConfig,
    ) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._demand = demand
        self._config = config
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._report())

    async def close(self) -> None:
        if self._task is not None:
            await _stop(self._task)
            self._task = None

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            await _attempt("demand", self._report_once)

    async def _report_once(self) -> None:
        await self._client.report_demand(self._gateway_id, await self._demand())


class DirectoryReader:
    """A gateway's directory: `members` answers at once from what a background task last read."""

    def __init__(
        self, client: DirectoryClient, config: DirectoryConfig, clock: Clock | None = None
    ) -> None:
        self._client = client
        self._config = config
        self._view = MemberView(config.lease_s, clock)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._refresh()
        self._task = asyncio.create_task(self._keep_current())

    async def close(self) -> None:
        if self._task is not None:
            await _stop(self._task)
            self._task = None

    async def members(self) -> Sequence[Member]:
        """The workers that were last known."""
        return self._view.workers

    @property
    def targets(self) -> Mapping[str, int]:
        """The replicas that autoscaling asks for, by pool, as last known."""
        return self._view.targets

    @property
    def age_s(self) -> float | None:
        """Seconds since the directory last answered; None when it never has."""
        return self._view.age_s

    async def _keep_current(self) -> None:
        while True:
            await asyncio.sleep(self._config.refresh_s)
            await self._refresh()

    async def _refresh(self) -> None:
        async def read() -> None:
            self._view.update(await self._client.listing())

        await _attempt("listing", read)


async def _attempt(what: str, call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except UnavailableError as error:
        log.info("directory %s: %s; trying again", what, error)
    except BatonError as error:
        log.warning("directory %s refused: %s", what, error)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
