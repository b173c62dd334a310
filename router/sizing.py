"""How many replicas would do: one pure function for each scaling policy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from baton.protos.types import Role
from baton.router.scaling_config import ScalingConfig
from baton.router.scaling_signals import Demand, PoolState, ReplicaSignals, Sizing
from baton.router.times import DecodeTimes, PrefillTimes

# Of a decode worker's KV pool, how much a sizing plans to use: a request that finds none waits.
_KV_SHARE = 0.9
_MAX_REPLICAS = 100_000
# Less work than this much of a replica, and nothing running or waiting, is none.
NO_WORK = 0.01
_NO_REQUESTS_PER_S = 0.01
# A tenth of the SLO at least is left for waiting, however long a mean prompt takes.
_LEAST_WAIT_SHARE = 0.1


class Load(NamedTuple):
    """The forecast arrivals that a sizing is for, how far ahead they are, and the KV tokens that a
    request holds while it decodes."""

    requests_per_s: float
    prompt_tokens_per_s: float
    prompt_squares_per_s: float
    output_tokens_per_s: float
    horizon_s: float
    kv_per_request: float = 0.0

    def scaled(self, factor: float) -> Load:
        """More requests of the same kind."""
        return self._replace(
            requests_per_s=factor * self.requests_per_s,
            prompt_tokens_per_s=factor * self.prompt_tokens_per_s,
            prompt_squares_per_s=factor * self.prompt_squares_per_s,
            output_tokens_per_s=factor * self.output_tokens_per_s,
        )


Policy = Callable[[PoolState, Load, float, ScalingConfig], "Sizing | None"]


def wait_tail(num_servers: int, offered: float, wait: float, cv2: float) -> float:
    """P(wait > `wait` mean service times) in an M/G/n queue that `offered` servers' work reaches.

    Erlang C, with the tail's rate scaled by the service times' variability (Allen and Cunneen).
    """
    if offered >= num_servers:
        return 1.0
    blocked = 1.0
    for k in range(1, num_servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    waits = num_servers * blocked / (num_servers - offered * (1 - blocked))
    return waits * math.exp(-2 * (num_servers - offered) * wait / (1 + cv2))


def slo(state: PoolState, load: Load, margin: float, config: ScalingConfig) -> Sizing | None:
    """Predicted TTFT or ITL within its SLO; None while there is nothing to predict from."""
    if state.demand is None:
        return None
    if load.requests_per_s < _NO_REQUESTS_PER_S:
        return Sizing(replicas=0.0, why="next to nothing arrives")
    size = _slo_prefill if state.role is Role.PREFILL else _slo_decode
    return size(state, state.demand, load.scaled(margin), config)


def queue(state: PoolState, load: Load, margin: float, config: ScalingConfig) -> Sizing | None:
    """As many replicas as have work, or more where too many prompt tokens wait for them."""
    if not _seen(state):
        return None
    waiting = _sum(state, "queued_prefill_tokens") + _gateway_tokens(state)
    wanted = margin * max(waiting / config.queue_tokens_per_replica, _sum(state, "busy"))
    return Sizing(
        replicas=wanted,
        why=f"{waiting:.0f} prompt tokens wait, {config.queue_tokens_per_replica:g} per replica "
        "are allowed",
    )


def utilization(
    state: PoolState, load: Load, margin: float, config: ScalingConfig
) -> Sizing | None:
    """The sum of what replicas use, spread at the target."""
    if not _seen(state):
        return None
    used = sum(_utilization(replica, state.role) for replica in state.replicas)
    used *= state.num_running / max(1, len(state.replicas))
    return Sizing(
        replicas=margin * used / config.target_utilization,
        why=f"replicas use {used:.2f} of {state.num_running}, and shall use "
        f"{config.target_utilization:.0%} each",
    )


def schedule(state: PoolState, load: Load, margin: float, config: ScalingConfig) -> Sizing | None:
    """What the active windows say, or the least."""
    return Sizing(replicas=state.min_replicas, why="no window is active")


POLICIES: dict[str, Policy] = {
    "slo": slo,
    "queue": queue,
    "utilization": utilization,
    "schedule": schedule,
}


def _slo_prefill(
    state: PoolState, demand: Demand, load: Load, config: ScalingConfig
) -> Sizing | None:
    times = demand.prefill.prefill if demand.prefill else _prefill_times(state)
    if times is None:
        return None
    mean = load.prompt_tokens_per_s / load.requests_per_s
    cv2 = max(0.0, load.prompt_squares_per_s / load.requests_per_s / max(mean, 1) ** 2 - 1)
    service_s = max(times.predict(max(1.0, mean)), 1e-6)
    offered = load.requests_per_s * service_s
    waiting = _sum(state, "queued_prefill_tokens") + _gateway_tokens(state)
    # What waits already has to be worked off beside what comes.
    offered += waiting / max(mean, 1) * service_s / _working_off_s(load, config)
    slack_s = max(config.ttft_slo_s - service_s, _LEAST_WAIT_SHARE * config.ttft_slo_s)
    count = int(offered) + 1
    while (
        count < _MAX_REPLICAS
        and wait_tail(count, offered, slack_s / service_s, cv2) > 1 - config.slo_percentile
    ):
        count += 1
    return Sizing(
        replicas=count,
        why=f"{load.requests_per_s:.2f} requests/s of {mean:.0f} tokens keep "
        f"{offered:.2f} replicas busy, and {count} keep TTFT within {config.ttft_slo_s:g} s for "
        f"{config.slo_percentile:.0%}",
    )


def _working_off_s(load: Load, config: ScalingConfig) -> float:
    """In which what waits already shall be done."""
    return max(load.horizon_s, 10 * config.ttft_slo_s)


def _slo_decode(
    state: PoolState, demand: Demand, load: Load, config: ScalingConfig
) -> Sizing | None:
    times = demand.decode.decode if demand.decode else _decode_times(state)
    if times is None:
        return None
    running, kv_each = _sum(state, "num_running"), load.kv_per_request
    most = _most_running(state, times, kv_each, config)
    step_s = times.predict(most, most * kv_each)
    waiting = demand.waiting_requests + _sum(state, "num_waiting")
    # Those that wait, for prefill workers as a rule, come beside the others, not all at once.
    arriving = 1 + waiting / (load.requests_per_s * _working_off_s(load, config))
    concurrent = load.output_tokens_per_s * arriving * step_s
    concurrent += NormalDist().inv_cdf(config.slo_percentile) * math.sqrt(concurrent)
    concurrent = max(concurrent, running)
    return Sizing(
        replicas=concurrent / most,
        why=f"{load.output_tokens_per_s:.0f} tokens/s keep {concurrent:.1f} requests running, "
        f"and a replica runs {most:.0f} within an ITL of {config.itl_slo_s:g} s",
    )


def _most_running(
    state: PoolState, times: DecodeTimes, kv_each: float, config: ScalingConfig
) -> float:
    """How many requests one replica runs within the ITL SLO, its KV pool and its batch."""
    per_request_s = times.per_row_s + kv_each * times.per_kv_token_s
    left_s = config.itl_slo_s - times.fixed_s
    most = left_s / per_request_s if per_request_s > 0 else math.inf
    room = [r.kv_capacity_tokens for r in state.replicas if r.kv_capacity_tokens > 0]
    if room and kv_each > 0:
        most = min(most, _KV_SHARE * min(room) / kv_each)
    batch = [r.max_running for r in state.replicas if r.max_running > 0]
    return max(1.0, min(most, min(batch, default=256.0)))


def _prefill_times(state: PoolState) -> PrefillTimes | None:
    """From the replicas' own moving averages, where no gateway has learned more."""
    rates = [r.prefill_tokens_per_s for r in state.replicas if r.prefill_tokens_per_s > 0]
    if not rates:
        return None
    return PrefillTimes(fixed_s=0.0, per_token_s=1 / statistics.median(rates))


def _decode_times(state: PoolState) -> DecodeTimes | None:
    measured = [r for r in state.replicas if r.decode_step_s > 0]
    if not measured:
        return None
    step_s = statistics.median(r.decode_step_s for r in measured)
    rows = max(1.0, statistics.median(r.num_running for r in measured))
    # One point says nothing of the slope: half of the step is laid to the requests in it.
    return DecodeTimes(fixed_s=step_s / 2, per_row_s=step_s / 2 / rows)


def _utilization(replica: ReplicaSignals, role: Role) -> float:
    if role is Role.PREFILL:
        # A prompt that waits beside a busy replica shows as more than 100%.
        rate = replica.prefill_tokens_per_s
        wait_s = replica.queued_prefill_tokens / rate if rate > 0 else 0.0
        return max(replica.busy, replica.kv_use, min(2.0, wait_s))
    batch = replica.num_running / replica.max_running if replica.max_running else 0.0
    return max(replica.kv_use, batch)


def _seen(state: PoolState) -> bool:
    return bool(state.replicas) or state.num_running == 0


def _sum(state: PoolState, name: str) -> float:
    """Over all running replicas; those without a report are taken to be like the others."""
    values: Sequence[float] = [getattr(replica, name) for replica in state.replicas]
    return sum(values) * max(1.0, state.num_running / len(values)) if values else 0.0


def _gateway_tokens(state: PoolState) -> int:
    return state.demand.waiting_tokens if state.demand else 0
