"""What an operator may set about a pool's size. `docs/autoscaling.md` explains each policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from baton.protos.errors import ConfigError
from baton.router.cron import MAX_WINDOW_S, Cron, local_time

SCALING_POLICIES = ("slo", "queue", "utilization", "schedule")
_POSITIVE = (
    "ttft_slo_s",
    "itl_slo_s",
    "queue_tokens_per_replica",
    "target_utilization",
    "interval_s",
    "start_s",
    "max_growth",
)
_NOT_NEGATIVE = ("up_cooldown_s", "down_cooldown_s", "hysteresis")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleWindow:
    """At least `replicas` (and with the policy `schedule`, just as many) from each moment that
    `start` names, as cron does, for `duration_s` seconds. Raises ConfigError.
    """

    start: str
    duration_s: float
    replicas: int
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        Cron.parse(self.start)
        local_time(0.0, self.timezone)
        if not 60 <= self.duration_s <= MAX_WINDOW_S:
            raise ConfigError(
                f"duration_s is {self.duration_s}, but must be from 60 to {MAX_WINDOW_S:g}",
                param="duration_s",
            )
        if self.replicas < 0:
            raise ConfigError(
                f"replicas is {self.replicas}, but must be 0 or more", param="replicas"
            )

    def active(self, now_s: float) -> bool:
        """Whether `now_s` (seconds since 1970) lies in the window."""
        return Cron.parse(self.start).began_within(
            local_time(now_s, self.timezone), self.duration_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """How one pool's size follows its work. Raises ConfigError that names the field.

    Policies: `slo` keeps the predicted TTFT (prefill) or ITL (decode) within its SLO for
    `slo_percentile` of requests at the forecast load; `queue` keeps the prompt tokens that wait at
    `queue_tokens_per_replica`; `utilization` keeps replicas at `target_utilization`; `schedule`
    follows `windows` alone. With any other policy `windows` are a floor.

    The pool grows at once, at most `max_growth`-fold every `up_cooldown_s`. It shrinks to the
    largest size that the last `down_cooldown_s` asked for at a load `hysteresis` (0.1: 10%) above
    the measured one. `start_s` is how long a replica takes to start until one has been watched.
    With `dry_run` the decision is only said.
    """

    policy: str = "slo"
    ttft_slo_s: float = 1.0
    itl_slo_s: float = 0.05
    slo_percentile: float = 0.95
    queue_tokens_per_replica: int = 8192
    target_utilization: float = 0.7
    windows: tuple[ScheduleWindow, ...] = field(default=())
    interval_s: float = 1.0
    start_s: float = 30.0
    up_cooldown_s: float = 5.0
    down_cooldown_s: float = 60.0
    hysteresis: float = 0.1
    max_growth: float = 2.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.policy not in SCALING_POLICIES:
            raise ConfigError(
                f"policy is {self.policy!r}, but must be one of {', '.join(SCALING_POLICIES)}",
                param="policy",
            )
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            value = getattr(self, name)
            low_enough = value >= 0 if name in _NOT_NEGATIVE else value > 0
            if not math.isfinite(value) or not low_enough:
                bound = "at least 0" if name in _NOT_NEGATIVE else "more than 0"
                raise ConfigError(f"{name} is {value}, but must be finite and {bound}", param=name)
        for name, high in (("slo_percentile", 1.0), ("target_utilization", 1.0)):
            if not 0 < getattr(self, name) < high:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but must be between 0 and 1", param=name
                )
        if self.max_growth <= 1:
            raise ConfigError(
                f"max_growth is {self.max_growth}, but must be more than 1", param="max_growth"
            )
        if self.policy == "schedule" and not self.windows:
            raise ConfigError(
                "policy is 'schedule', but windows is empty: give at least one", param="windows"
            )
