"""One request on its way through admission, and what is counted of its tenant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Refusal(StrEnum):
    """Why a request was turned away; also the `code` of the error."""

    QUEUE_FULL = "queue_full"
    TENANT_QUEUE_FULL = "tenant_queue_full"
    TOKEN_RATE = "token_rate_exceeded"
    TOO_LATE = "deadline_cannot_be_met"


class TicketState(StrEnum):
    """WAITING in the queue, RUNNING at a worker, ENDED for good."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One request, from its arrival to its end. Times are the caller's clock.

    `service_s` is how long its first token takes once it is sent, as the plan's estimate says;
    `due_s` is when the first token must be there, `math.inf` where nothing says so. A smaller
    `priority` goes first among the tenant's own requests.
    """

    tenant: str
    num_prompt_tokens: int
    max_tokens: int
    priority: int = 0
    service_s: float = 0.0
    due_s: float = math.inf
    # Kept by the queue.
    state: TicketState = TicketState.WAITING
    sequence: int = 0
    arrived_s: float = 0.0
    started_s: float = 0.0
    latest_start_s: float = math.inf
    assumed_output: float = 0.0
    charged: float = 0.0

    def order(self) -> tuple[int, int]:
        return self.priority, self.sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStatistics:
    """One tenant now, and its totals since the start. `wait_s` sums over requests that started."""

    name: str
    num_waiting: int
    num_running: int
    num_started: int
    wait_s: float
    served: float
    refused: dict[Refusal, int]
