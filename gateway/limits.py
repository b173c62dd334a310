"""Admission and deadlines: how many requests a gateway serves, and that each of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from baton.gateway.tenants import EVERYBODY
from baton.protos.clock import Clock
from baton.protos.errors import BatonError, DeadlineError, OverloadedError, UnavailableError
from baton.router.admission import CROWD_FACTOR


class Deadline:
    """Ends the block that it guards: at its time with DeadlineError, or at once with the cause
    given to `end`.

    The one way in which a request ends early: time, a client that left, and shutdown all come here,
    so the block sees one cancellation and its caller one error of the tree.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timeout = asyncio.timeout(timeout_s)
        self._cause: BatonError | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self._cause is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as timeout:
            raise self._cause or DeadlineError(
                f"the request did not end within its {self._timeout_s:g} s: ask for fewer tokens "
                "or a longer timeout"
            ) from timeout

    def end(self, cause: BatonError) -> None:
        """Ends the block now; the first cause counts. Harmless once the block is over."""
        if self._cause is not None:
            return
        self._cause = cause
        # Before it is entered or after it has ended there is nothing to reschedule.
        with contextlib.suppress(RuntimeError):
            self._timeout.reschedule(asyncio.get_running_loop().time())


class Admission:
    """Counts the requests in flight, refuses those beyond the limit, and empties at shutdown.

    Where tenants share the gateway, none of them may hold more than CROWD_FACTOR times the places
    that are still free, so that there is always one for another.
    """

    def __init__(self, limit: int, clock: Clock, *, shared: bool = False) -> None:
        self._limit = limit
        self._clock = clock
        self._shared = shared
        self._running: dict[Deadline, str] = {}
        self._by_tenant: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._mean_s = 1.0

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def closing(self) -> bool:
        return self._closing

    @contextlib.contextmanager
    def admit(self, deadline: Deadline, tenant: str = EVERYBODY) -> Iterator[None]:
        """Holds one place. OverloadedError when none is free, UnavailableError during shutdown."""
        if self._closing:
            raise UnavailableError("this gateway is shutting down: send the request to another one")
        self._check_room(tenant)
        started_s = self._clock.now_s()
        self._running[deadline] = tenant
        self._by_tenant[tenant] += 1
        self._idle.clear()
        try:
            yield
        finally:
            del self._running[deadline]
            self._by_tenant[tenant] -= 1
            self._mean_s += 0.1 * (self._clock.now_s() - started_s - self._mean_s)
            if not self._running:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests, waits `grace_s` for the running ones, then ends them and waits for
        that.
        """
        self._closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        for deadline in list(self._running):
            deadline.end(UnavailableError("the gateway shut down before the answer was complete"))
        await self._idle.wait()

    def _check_room(self, tenant: str) -> None:
        free = self._limit - len(self._running)
        if free <= 0:
            what = f"{self._limit} requests are being served, the most that this gateway takes"
        elif self._shared and self._by_tenant[tenant] >= CROWD_FACTOR * free:
            what = (
                f"{self._by_tenant[tenant]} of your requests are being served, and the {free} "
                "places that are left are for others"
            )
        else:
            return
        raise OverloadedError(f"{what}: retry later", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        # With `limit` requests of this mean length, one ends about every mean / limit seconds.
        return float(max(1, math.ceil(self._mean_s / self._limit)))
