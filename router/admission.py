"""Who may wait, who is refused, and who goes next: fair shares of a cluster that is full.

Pure: the caller tells the time and acts. The gateway runs it (`gateway/fleet.py`), and so does the
simulator.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.protos.errors import OverloadedError
from baton.router.admission_config import AdmissionConfig, TenantLimits
from baton.router.drain_rate import DrainRate
from baton.router.tickets import Refusal, TenantStatistics, Ticket, TicketState
from baton.router.token_bucket import TokenBucket

__all__ = ["AdmissionQueue", "Refusal", "TenantStatistics", "Ticket", "TicketState"]

# Of the places that are still free, how many times as many one tenant may hold: the rest stays
# free for others (dynamic thresholds, Choudhury and Hahne, 1998).
CROWD_FACTOR = 8.0
# Weight of the newest request in a tenant's mean output length and running time.
_NEWEST = 0.1
# Planning takes a moment; a request that waited less than this has not waited.
_AT_ONCE_S = 0.005


@dataclass(slots=True)
class _Tenant:
    limits: TenantLimits
    bucket: TokenBucket | None
    mean_output: float
    # In order of leaving; the first is the tenant's next.
    waiting: list[Ticket] = field(default_factory=list)
    waiting_cost: float = 0.0
    num_running: int = 0
    # Cost served so far over weight, lifted to the queue's virtual time when it begins to wait.
    virtual: float = 0.0
    mean_running_s: float = 1.0
    num_started: int = 0
    wait_s: float = 0.0
    served: float = 0.0
    refused: dict[Refusal, int] = field(default_factory=dict)

    @property
    def capped(self) -> bool:
        most = self.limits.max_running
        return most is not None and self.num_running >= most


class AdmissionQueue:
    """A bounded waiting room with weighted fair shares of tokens between tenants.

    Tenants are served in the order of their virtual token counters (VTC, Sheng et al., OSDI 2024,
    with the start-time rule of SFQ, Goyal et al., 1996, for those that were away): over any time
    in which two tenants wait, the tokens they get, divided by their weights, differ by at most one
    request of each. Nobody who waits can be passed over for ever.
    """

    def __init__(self, config: AdmissionConfig, tenants: Sequence[TenantLimits] = ()) -> None:
        self._config = config
        self._tenants: dict[str, _Tenant] = {}
        for limits in tenants:
            self._add_tenant(limits)
        self._active: dict[str, _Tenant] = {}
        self._expiry: list[tuple[float, int, Ticket]] = []
        self._sequence = 0
        self._virtual = 0.0
        self._num_waiting = 0
        self._waiting_tokens = 0
        self._waiting_cost = 0.0
        self._drain = DrainRate()

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return self._waiting_tokens

    def offer(self, ticket: Ticket, now_s: float) -> None:
        """Takes a request in, to wait for its turn. Raises OverloadedError whose `code` is a
        Refusal, with the seconds after which it would be taken.
        """
        tenant = self._tenant(ticket.tenant)
        self._sequence += 1
        ticket.sequence, ticket.arrived_s = self._sequence, now_s
        allowed_s = self._config.max_wait_s
        if tenant.limits.max_ttft_s is not None:
            ticket.due_s = min(ticket.due_s, now_s + tenant.limits.max_ttft_s)
        ticket.latest_start_s = min(now_s + allowed_s, ticket.due_s - ticket.service_s)
        ticket.assumed_output = min(ticket.max_tokens, tenant.mean_output)
        price = self._config.output_token_price
        ticket.charged = max(1, ticket.num_prompt_tokens) + price * ticket.assumed_output
        self._check_room(tenant, ticket, now_s)
        self._check_deadline(tenant, ticket, now_s)
        if tenant.bucket is not None:
            self._check_rate(tenant, tenant.bucket, ticket, now_s)
        self._enqueue(tenant, ticket, now_s)

    def head(self) -> Ticket | None:
        """Whose turn it is: the next request of the tenant that has had the least. None when nobody
        waits, or all who do have their most running.
        """
        best: _Tenant | None = None
        for tenant in self._active.values():
            if not tenant.capped and (best is None or tenant.virtual < best.virtual):
                best = tenant
        return None if best is None else best.waiting[0]

    def start(self, ticket: Ticket, now_s: float, *, num_cached_tokens: int = 0) -> None:
        """The request was sent to a worker, which holds `num_cached_tokens` of its prompt."""
        tenant = self._tenants[ticket.tenant]
        self._dequeue(tenant, ticket)
        ticket.state, ticket.started_s = TicketState.RUNNING, now_s
        ticket.charged = max(1.0, ticket.charged - num_cached_tokens)
        self._virtual = max(self._virtual, tenant.virtual)
        self._charge(tenant, ticket.charged)
        waited_s = now_s - ticket.arrived_s
        # What never waited was not drained.
        drained = ticket.charged if waited_s > _AT_ONCE_S else 0.0
        self._drain.served(drained, now_s, backlog=self._num_waiting > 0)
        tenant.num_running += 1
        tenant.num_started += 1
        tenant.wait_s += waited_s

    def join(self, ticket: Ticket, now_s: float) -> None:
        """A request that runs without having waited, such as a sibling of one that does: it is
        counted for its tenant, and never refused.
        """
        tenant = self._tenant(ticket.tenant)
        ticket.arrived_s = ticket.started_s = now_s
        ticket.state = TicketState.RUNNING
        ticket.assumed_output = min(ticket.max_tokens, tenant.mean_output)
        if not tenant.waiting:
            tenant.virtual = max(tenant.virtual, self._virtual)
        self._charge(tenant, self._config.output_token_price * ticket.assumed_output)
        tenant.num_running += 1

    def too_late(self, ticket: Ticket, now_s: float, ttft_s: float) -> OverloadedError | None:
        """The refusal of a waiting request whose first token would come `ttft_s` from now, if that
        is too late; it is the caller's to end it.
        """
        late_s = now_s + ttft_s - ticket.due_s
        if late_s <= 0:
            return None
        return self._refuse(
            self._tenants[ticket.tenant],
            Refusal.TOO_LATE,
            f"its first token would come {late_s:.3g} s after its deadline",
            late_s,
        )

    def end(self, ticket: Ticket, now_s: float, *, num_output_tokens: int = 0) -> None:
        """The request is over, wherever it was; a second call is ignored.

        What it really generated replaces what was assumed.
        """
        tenant = self._tenants[ticket.tenant]
        if ticket.state is TicketState.WAITING:
            self._dequeue(tenant, ticket)
            if tenant.bucket is not None:
                tenant.bucket.give_back(ticket.num_prompt_tokens)
        elif ticket.state is TicketState.RUNNING:
            tenant.num_running -= 1
            price = self._config.output_token_price
            self._charge(tenant, price * (num_output_tokens - ticket.assumed_output))
            tenant.mean_output += _NEWEST * (num_output_tokens - tenant.mean_output)
            running_s = now_s - ticket.started_s
            tenant.mean_running_s += _NEWEST * (running_s - tenant.mean_running_s)
            if tenant.bucket is not None:
                tenant.bucket.take(num_output_tokens, now_s)
        ticket.state = TicketState.ENDED

    def expired(self, now_s: float) -> list[tuple[Ticket, OverloadedError]]:
        """Removes the requests that waited in vain: started now they would be too late."""
        found: list[tuple[Ticket, OverloadedError]] = []
        while self._expiry and self._expiry[0][0] <= now_s:
            _, _, ticket = heapq.heappop(self._expiry)
            if ticket.state is not TicketState.WAITING:
                continue
            tenant = self._tenants[ticket.tenant]
            error = self._refuse(
                tenant,
                Refusal.TOO_LATE,
                f"no worker could begin the request within {now_s - ticket.arrived_s:.3g} s",
                self._wait_s(tenant, ticket, now_s),
            )
            self.end(ticket, now_s)
            found.append((ticket, error))
        return found

    def next_expiry_s(self) -> float:
        """When `expired` may have something to remove; `math.inf` for never."""
        while self._expiry and self._expiry[0][2].state is not TicketState.WAITING:
            heapq.heappop(self._expiry)
        return self._expiry[0][0] if self._expiry else math.inf

    def wait_estimate_s(self, name: str, now_s: float) -> float:
        """How long a request of this tenant that came now would wait, by what was served lately."""
        tenant = self._tenant(name)
        newest = Ticket(tenant=name, num_prompt_tokens=0, max_tokens=1, sequence=self._sequence + 1)
        return self._wait_s(tenant, newest, now_s)

    def statistics(self) -> list[TenantStatistics]:
        return [
            TenantStatistics(
                name=name,
                num_waiting=len(tenant.waiting),
                num_running=tenant.num_running,
                num_started=tenant.num_started,
                wait_s=tenant.wait_s,
                served=tenant.served,
                refused=dict(tenant.refused),
            )
            for name, tenant in self._tenants.items()
        ]

    def check_integrity(self) -> None:
        """Raises AssertionError unless every count agrees with the tickets that wait."""
        waiting = [ticket for tenant in self._tenants.values() for ticket in tenant.waiting]
        assert len(waiting) == self._num_waiting, "waiting requests are miscounted"
        assert sum(t.num_prompt_tokens for t in waiting) == self._waiting_tokens, "tokens miscount"
        assert all(ticket.state is TicketState.WAITING for ticket in waiting), "a ghost waits"
        assert {n for n, t in self._tenants.items() if t.waiting} == set(self._active), "not active"
        assert all(tenant.num_running >= 0 for tenant in self._tenants.values()), "ended twice"

    # Refusing.

    def _check_room(self, tenant: _Tenant, ticket: Ticket, now_s: float) -> None:
        config, limits = self._config, tenant.limits
        crowd = CROWD_FACTOR if len(self._tenants) > 1 else math.inf
        if limits.max_waiting is not None and len(tenant.waiting) >= limits.max_waiting:
            reason, what = Refusal.TENANT_QUEUE_FULL, f"{len(tenant.waiting)} of your requests wait"
        elif self._num_waiting >= config.max_waiting:
            reason, what = Refusal.QUEUE_FULL, f"{self._num_waiting} requests wait"
        elif self._num_waiting and (
            self._waiting_tokens + ticket.num_prompt_tokens > config.max_waiting_tokens
        ):
            reason, what = Refusal.QUEUE_FULL, f"{self._waiting_tokens} prompt tokens wait"
        elif len(tenant.waiting) >= crowd * (config.max_waiting - self._num_waiting):
            reason, what = Refusal.TENANT_QUEUE_FULL, f"{len(tenant.waiting)} of your requests wait"
        else:
            return
        # A place is free when as much has been served as one waiting request costs on average.
        mean_cost = self._waiting_cost / max(1, self._num_waiting)
        raise self._refuse(
            tenant, reason, f"{what}, the most possible now", self._drain.seconds(mean_cost, now_s)
        )

    def _check_deadline(self, tenant: _Tenant, ticket: Ticket, now_s: float) -> None:
        wait_s = self._wait_s(tenant, ticket, now_s)
        late_s = now_s + wait_s - ticket.latest_start_s
        if late_s > 0:
            raise self._refuse(
                tenant,
                Refusal.TOO_LATE,
                f"it would wait {wait_s:.3g} s for a worker, and its first token would take "
                f"{ticket.service_s:.3g} s more: too late for its deadline",
                late_s,
            )

    def _check_rate(
        self, tenant: _Tenant, bucket: TokenBucket, ticket: Ticket, now_s: float
    ) -> None:
        wait_s = bucket.wait_s(now_s)
        if wait_s > 0:
            raise self._refuse(
                tenant,
                Refusal.TOKEN_RATE,
                f"your limit of {tenant.limits.tokens_per_minute:g} tokens a minute is used up",
                wait_s,
            )
        bucket.take(ticket.num_prompt_tokens, now_s)

    def _refuse(
        self, tenant: _Tenant, reason: Refusal, what: str, retry_after_s: float
    ) -> OverloadedError:
        tenant.refused[reason] = tenant.refused.get(reason, 0) + 1
        after_s = max(1.0, retry_after_s)
        return OverloadedError(
            f"{what}: retry in {math.ceil(after_s)} s", retry_after_s=after_s, code=reason.value
        )

    def _wait_s(self, tenant: _Tenant, ticket: Ticket, now_s: float) -> float:
        """Seconds until `ticket` would start, were it the tenant's newest of its priority.

        As a fluid: the tenant's own work ahead at its share of the measured rate, or everybody's
        at the whole rate, whichever is sooner; under a limit of its own, by that limit.
        """
        num_ahead = bisect.bisect_left(tenant.waiting, ticket.order(), key=Ticket.order)
        if num_ahead == len(tenant.waiting):
            own_cost = tenant.waiting_cost
        else:
            own_cost = sum(other.charged for other in tenant.waiting[:num_ahead])
        weights = tenant.limits.weight + sum(
            other.limits.weight for other in self._active.values() if other is not tenant
        )
        own_s = self._drain.seconds(own_cost * weights / tenant.limits.weight, now_s)
        wait_s = min(own_s, self._drain.seconds(self._waiting_cost, now_s))
        if tenant.capped and tenant.limits.max_running is not None:
            slot_s = tenant.mean_running_s / tenant.limits.max_running
            wait_s = max(wait_s, slot_s * (num_ahead + 1))
        return wait_s

    # Waiting.

    def _enqueue(self, tenant: _Tenant, ticket: Ticket, now_s: float) -> None:
        if not tenant.waiting:
            tenant.virtual = max(tenant.virtual, self._virtual)
            self._active[ticket.tenant] = tenant
        if not self._num_waiting:
            self._drain.backlog_began(now_s)
        bisect.insort(tenant.waiting, ticket, key=Ticket.order)
        tenant.waiting_cost += ticket.charged
        self._num_waiting += 1
        self._waiting_tokens += ticket.num_prompt_tokens
        self._waiting_cost += ticket.charged
        heapq.heappush(self._expiry, (ticket.latest_start_s, ticket.sequence, ticket))

    def _dequeue(self, tenant: _Tenant, ticket: Ticket) -> None:
        del tenant.waiting[bisect.bisect_left(tenant.waiting, ticket.order(), key=Ticket.order)]
        tenant.waiting_cost -= ticket.charged
        self._num_waiting -= 1
        self._waiting_tokens -= ticket.num_prompt_tokens
        self._waiting_cost = max(0.0, self._waiting_cost - ticket.charged)
        if not tenant.waiting:
            tenant.waiting_cost = 0.0
            del self._active[ticket.tenant]
        if len(self._expiry) > 64 + 4 * self._num_waiting:
            # Ended tickets leave the heap when they come up; many that never do are swept.
            live = [entry for entry in self._expiry if entry[2].state is TicketState.WAITING]
            self._expiry = [entry for entry in live if entry[2] is not ticket]
            heapq.heapify(self._expiry)

    def _charge(self, tenant: _Tenant, cost: float) -> None:
        tenant.served += cost
        tenant.virtual += cost / tenant.limits.weight

    def _tenant(self, name: str) -> _Tenant:
        return self._tenants.get(name) or self._add_tenant(TenantLimits(name=name))

    def _add_tenant(self, limits: TenantLimits) -> _Tenant:
        per_minute = limits.tokens_per_minute
        tenant = self._tenants[limits.name] = _Tenant(
            limits,
            None if per_minute is None else TokenBucket(per_minute / 60, per_minute),
            float(self._config.expected_output_tokens),
        )
        return tenant
