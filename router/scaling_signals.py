"""What a pool's size is decided from, and what is decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.protos.types import Role
from baton.router.times import WorkerTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSignals:
    """One running replica's last report. `busy` is the share of lately passed time in which it had
    work; rates of 0.0 are not measured yet.
    """

    replica_id: str
    age_s: float = 0.0
    num_running: float = 0.0
    num_waiting: float = 0.0
    queued_prefill_tokens: float = 0.0
    kv_tokens: float = 0.0
    kv_use: float = 0.0
    busy: float = 0.0
    max_running: float = 0.0
    kv_capacity_tokens: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What reaches the gateways, all of them together: rates since their last reports, and what
    waits in them now.

    `prompt_tokens_per_s` are those to be computed (not cached), `prompt_squares_per_s` the sum of
    their squares by request, `output_tokens_per_s` what the arriving requests will generate if they
    are as long as earlier ones. `prefill` and `decode` are the learned time models, if any.
    """

    requests_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    prompt_squares_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    waiting_requests: int = 0
    waiting_tokens: int = 0
    prefill: WorkerTimes | None = None
    decode: WorkerTimes | None = None

    @classmethod
    def total(cls, demands: Iterable[Demand]) -> Demand:
        """Of several gateways; models are the first that are known."""
        found = list(demands)
        return cls(
            requests_per_s=sum(d.requests_per_s for d in found),
            prompt_tokens_per_s=sum(d.prompt_tokens_per_s for d in found),
            prompt_squares_per_s=sum(d.prompt_squares_per_s for d in found),
            output_tokens_per_s=sum(d.output_tokens_per_s for d in found),
            waiting_requests=sum(d.waiting_requests for d in found),
            waiting_tokens=sum(d.waiting_tokens for d in found),
            prefill=next((d.prefill for d in found if d.prefill), None),
            decode=next((d.decode for d in found if d.decode), None),
        )

    @property
    def any(self) -> bool:
        """Whether anything arrives or waits."""
        return self.requests_per_s > 0 or self.waiting_requests > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """One pool at one moment. `now_s` are seconds since 1970.

    `num_target` replicas were asked for, `num_running` of them run; the others start. Draining
    replicas are in neither. `replicas` are the reports there are, which may be fewer than run.
    `demand` None: no gateway has said anything lately.
    """

    role: Role
    now_s: float
    num_target: int
    num_running: int
    min_replicas: int
    max_replicas: int
    replicas: tuple[ReplicaSignals, ...] = ()
    demand: Demand | None = None

    @property
    def confidence(self) -> float:
        """The share of running replicas that have reported; 1.0 where none runs."""
        return min(1.0, len(self.replicas) / self.num_running) if self.num_running else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How many replicas a policy wants, in fractions, and why in words."""

    replicas: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDecision:
    """`target` replicas are to be there; `num_before` were asked for until now.

    `wanted` is what the policy asked for before bounds, cool-downs and hysteresis. In a dry run
    `target` is what would be done, and nothing is.
    """

    role: Role
    now_s: float
    policy: str
    num_before: int
    num_running: int
    wanted: int
    target: int
    reason: str
    confidence: float
    dry_run: bool = False
    inputs: dict[str, float] = field(default_factory=dict)

    @property
    def applied(self) -> int:
        """The number to ask for now."""
        return self.num_before if self.dry_run else self.target

    def line(self) -> str:
        """One line for logs and people."""
        verb = "would go" if self.dry_run else "goes"
        change = (
            f"stays at {self.target}"
            if self.target == self.num_before
            else f"{verb} from {self.num_before} to {self.target}"
        )
        return f"{self.role.value} {change}: {self.reason} (confidence {self.confidence:.0%})"
