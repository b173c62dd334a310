"""Requests that wait in the gateway, because no worker could begin them soon."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from baton.gateway.fleet_demand import DemandMeter
from baton.gateway.fleet_generation import Generation
from baton.protos.clock import Clock
from baton.protos.errors import OverloadedError
from baton.router.admission import AdmissionQueue, TenantStatistics, Ticket
from baton.router.admission_config import AdmissionConfig, TenantLimits
from baton.router.scaling_signals import Demand

# Weight of the newest plan in the estimate of seconds per prompt token.
_NEWEST = 0.05


class WaitingRoom:
    """The admission queue with its tickets tied to generations, and a timer for those whose time
    runs out. Belongs to one event loop.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        tenants: Sequence[TenantLimits],
        clock: Clock,
        on_expired: Callable[[Generation, OverloadedError], None],
    ) -> None:
        self.hold_s = config.hold_s
        self._queue = AdmissionQueue(config, tenants)
        self._meter = DemandMeter(clock, config.expected_output_tokens)
        self._clock = clock
        self._on_expired = on_expired
        self._tickets: dict[Generation, Ticket] = {}
        self._waiting: dict[Ticket, Generation] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._service_s_per_token = 0.0

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    @property
    def waiting_tokens(self) -> int:
        return self._queue.waiting_tokens

    def waiting(self) -> list[Generation]:
        """Those that wait, in no order."""
        return list(self._waiting.values())

    def enter(self, generation: Generation, tenant: str, due_s: float) -> None:
        """Takes a new request in. `due_s`: when its first token must be there. Raises
        OverloadedError.
        """
        ticket = self._ticket(generation, tenant)
        # Whoever is refused wanted to be served, too.
        self._meter.arrived(ticket.num_prompt_tokens)
        ticket.due_s = due_s
        ticket.service_s = self._service_s_per_token * ticket.num_prompt_tokens
        self._queue.offer(ticket, self._clock.now_s())
        self._tickets[generation] = ticket
        self._waiting[ticket] = generation
        self._set_timer()

    def pass_by(self, generation: Generation, tenant: str) -> None:
        """A sibling of a request that runs: counted, but neither queued nor refused."""
        ticket = self._tickets[generation] = self._ticket(generation, tenant)
        self._queue.join(ticket, self._clock.now_s())

    def head(self) -> Generation | None:
        """Whose turn it is."""
        ticket = self._queue.head()
        return None if ticket is None else self._waiting[ticket]

    def too_late(self, generation: Generation, ttft_s: float) -> OverloadedError | None:
        """The refusal of a request whose first token the plan puts after its deadline."""
        return self._queue.too_late(self._tickets[generation], self._clock.now_s(), ttft_s)

    def started(self, generation: Generation, num_cached_tokens: int, service_s: float) -> None:
        """It was sent to a worker, where its first token is `service_s` away without waiting."""
        ticket = self._tickets[generation]
        self._queue.start(ticket, self._clock.now_s(), num_cached_tokens=num_cached_tokens)
        del self._waiting[ticket]
        self._meter.planned(ticket.num_prompt_tokens, num_cached_tokens)
        per_token = max(0.0, service_s) / max(1, ticket.num_prompt_tokens)
        self._service_s_per_token += _NEWEST * (per_token - self._service_s_per_token)

    def ended(self, generation: Generation) -> None:
        """It is over; waiting or not, its place is free. Unknown ones are ignored."""
        ticket = self._tickets.pop(generation, None)
        if ticket is not None:
            if self._waiting.pop(ticket, None) is None:
                self._meter.finished(generation.num_received)
            self._queue.end(ticket, self._clock.now_s(), num_output_tokens=generation.num_received)

    def demand(self) -> Demand:
        """What arrived since the last call, and what waits."""
        return self._meter.take(self.num_waiting, self.waiting_tokens)

    def statistics(self) -> list[TenantStatistics]:
        return self._queue.statistics()

    def check_integrity(self) -> None:
        """Raises AssertionError unless the queue and the generations agree."""
        self._queue.check_integrity()
        assert len(self._waiting) == self._queue.num_waiting, "a ticket without a generation"

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ticket(self, generation: Generation, tenant: str) -> Ticket:
        request = generation.request
        return Ticket(
            tenant=tenant,
            num_prompt_tokens=len(request.prompt_token_ids),
            max_tokens=request.sampling.max_tokens,
            priority=request.priority,
        )

    def _set_timer(self) -> None:
        """One timer, for the first that may run out; it may come early, never late."""
        expiry_s = self._queue.next_expiry_s()
        if expiry_s == math.inf:
            return
        delay_s = max(0.0, expiry_s - self._clock.now_s())
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for ticket, error in self._queue.expired(self._clock.now_s()):
            self._on_expired(self._waiting[ticket], error)
        self._set_timer()
