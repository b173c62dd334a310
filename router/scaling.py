"""How large a pool shall be: a policy's wish within bounds, cool-downs and hysteresis.

Pure: the caller tells time and signals and acts. Ray Serve runs it (`cluster/scaling.py`), and so
does the simulator.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import fields
from statistics import NormalDist

from baton.router.forecast import SLOW_S, Average, Forecast
from baton.router.scaling_config import ScalingConfig
from baton.router.scaling_signals import PoolState, ScalingDecision, Sizing
from baton.router.sizing import NO_WORK, POLICIES, Load

# Below this share of running replicas reporting, nothing is taken away.
LEAST_CONFIDENCE = 0.5
# What there is of them grows and falls with the requests.
_OF_REQUESTS = (
    "prompt_tokens_per_s",
    "prompt_squares_per_s",
    "output_tokens_per_s",
)


class PoolScaler:
    """Decides one pool's size, again and again; remembers forecasts and recent wishes.

    A pool never shrinks while fewer than half of its replicas report, nor while nobody can say what
    arrives; it holds what it has, and says so. Replicas that start count as asked for, and every
    wish is absolute, so nothing is asked for twice.
    """

    def __init__(self, config: ScalingConfig) -> None:
        self.config = config
        self._requests = Forecast()
        self._of_requests = {name: Average(SLOW_S) for name in _OF_REQUESTS}
        # Of all replicas: a ratio of averages, as few requests tell little of the next ones.
        self._kv_tokens, self._num_running = Average(SLOW_S), Average(SLOW_S)
        self._last_s: float | None = None
        self._wishes: deque[tuple[float, int]] = deque()
        self._began_s: float | None = None
        self._last_up_s = -math.inf
        self._starts = _StartWatch(config.start_s)

    def reconfigure(self, config: ScalingConfig) -> None:
        """Other rules from now on; what was learned stays."""
        self.config = config
        self._wishes.clear()
        self._began_s = None

    @property
    def start_s(self) -> float:
        """How long a replica takes to start, as watched."""
        return self._starts.seconds

    def decide(self, state: PoolState) -> ScalingDecision:
        """The decision for this moment. Calls come in the order of time."""
        if self._began_s is None:
            self._began_s = state.now_s
        self._starts.watch(state)
        load = self._learn(state)
        size = POLICIES[self.config.policy]
        wish = size(state, load, 1.0, self.config)
        least = size(state, load, 1 + self.config.hysteresis, self.config)
        if wish is None or least is None:
            wanted, target, reason = state.num_target, state.num_target, self._blind(state)
            wanted, target = self._wake(state, wanted), self._wake(state, target)
            bounded, floor = self._bounded(state, target)
        else:
            wanted = _whole(state, wish)
            self._remember(state.now_s, _whole(state, least))
            target, held = self._next(state, wanted)
            bounded, floor = self._bounded(state, target)
            reason = f"{self.config.policy}: {wish.why}{held}"
        return ScalingDecision(
            role=state.role,
            now_s=state.now_s,
            policy=self.config.policy,
            num_before=state.num_target,
            num_running=state.num_running,
            wanted=wanted,
            target=bounded,
            reason=reason + floor,
            confidence=state.confidence,
            dry_run=self.config.dry_run,
            inputs=_inputs(state, load),
        )

    def _learn(self, state: PoolState) -> Load:
        elapsed_s = state.now_s - (state.now_s - 1.0 if self._last_s is None else self._last_s)
        self._last_s = state.now_s
        if state.demand is not None:
            self._requests.add(state.demand.requests_per_s, state.now_s)
            for name, average in self._of_requests.items():
                average.add(getattr(state.demand, name), elapsed_s)
        if state.replicas:
            self._kv_tokens.add(sum(each.kv_tokens for each in state.replicas), elapsed_s)
            self._num_running.add(sum(each.num_running for each in state.replicas), elapsed_s)
        horizon_s = self._starts.seconds + self.config.interval_s
        deviations = NormalDist().inv_cdf(self.config.slo_percentile)
        requests_per_s = self._requests.ahead(horizon_s, deviations)
        # How long requests are changes less, and more slowly, than how many come.
        growth = requests_per_s / self._requests.level if self._requests.level else 0.0
        rates = {name: growth * average.mean for name, average in self._of_requests.items()}
        running = self._num_running.mean
        return Load(
            requests_per_s=requests_per_s,
            **rates,
            horizon_s=horizon_s,
            kv_per_request=self._kv_tokens.mean / running if running else 0.0,
        )

    def _remember(self, now_s: float, wanted: int) -> None:
        """Keeps the largest wishes of the cool-down window, newest last, each larger than the
        next: the first is the window's largest.
        """
        wishes = self._wishes
        while wishes and wishes[-1][1] <= wanted:
            wishes.pop()
        wishes.append((now_s, wanted))
        while wishes[0][0] < now_s - self.config.down_cooldown_s:
            wishes.popleft()

    def _next(self, state: PoolState, wanted: int) -> tuple[int, str]:
        config, now_s, current = self.config, state.now_s, state.num_target
        if wanted > current:
            if current and now_s - self._last_up_s < config.up_cooldown_s:
                return (
                    current,
                    f"; {wanted} wanted, but it grew less than {config.up_cooldown_s:g} s ago",
                )
            self._last_up_s = now_s
            most = max(current + 1, math.ceil(current * config.max_growth)) if current else wanted
            return min(wanted, most), ""
        largest = self._wishes[0][1]
        if largest >= current:
            return current, ""
        if state.confidence < LEAST_CONFIDENCE and config.policy != "schedule":
            return current, f"; {largest} would do, but too few replicas report"
        watched_s = now_s - (now_s if self._began_s is None else self._began_s)
        if watched_s < config.down_cooldown_s:
            return current, f"; {largest} would do, but only {watched_s:.0f} s were watched"
        low = max(largest, state.min_replicas)
        if low == current:
            return current, ""
        return low, f"; no more than {largest} wanted for {config.down_cooldown_s:g} s"

    def _bounded(self, state: PoolState, target: int) -> tuple[int, str]:
        windows = [w.replicas for w in self.config.windows if w.active(state.now_s)]
        low = max([state.min_replicas, *windows])
        bounded = min(max(target, low), state.max_replicas)
        if bounded == target:
            return target, ""
        if bounded > target:
            which = "a window" if windows and low == max(windows) else "min_replicas"
            return bounded, f"; raised from {target} by {which}"
        return bounded, f"; lowered from {target} by max_replicas"

    def _blind(self, state: PoolState) -> str:
        what = "no gateway reports" if state.demand is None else "no replica reports"
        if state.demand is not None and state.replicas:
            what = "no replica has measured its speed yet"
        return f"{self.config.policy}: {what}, so nothing is changed"

    def _wake(self, state: PoolState, target: int) -> int:
        """A pool of none has no reports, but whoever waits for it says so."""
        return max(target, int(state.demand is not None and state.demand.any))


class _StartWatch:
    """Times how long replicas that were asked for take to run."""

    def __init__(self, prior_s: float) -> None:
        self.seconds = prior_s
        self._asked: tuple[int, float] | None = None
        self._num_target: int | None = None

    def watch(self, state: PoolState) -> None:
        grew = self._num_target is not None and state.num_target > self._num_target
        self._num_target = state.num_target
        if grew:
            self._asked = (state.num_target, state.now_s)
        if self._asked is None:
            return
        count, since_s = self._asked
        if state.num_target < count:
            self._asked = None
        elif state.num_running >= count:
            self.seconds += 0.5 * (state.now_s - since_s - self.seconds)
            self._asked = None


def _whole(state: PoolState, sizing: Sizing) -> int:
    """Replicas come whole; the last one goes only when there is nothing at all to do."""
    has_work = any(r.num_running or r.num_waiting for r in state.replicas)
    arrives = state.demand is not None and state.demand.any
    if sizing.replicas < NO_WORK and not has_work and not arrives:
        return 0
    return max(1, math.ceil(sizing.replicas - 1e-9))


def _inputs(state: PoolState, load: Load) -> dict[str, float]:
    inputs = {f"forecast_{name}": value for name, value in zip(load._fields, load, strict=True)}
    if state.demand is not None:
        inputs |= {
            f.name: getattr(state.demand, f.name)
            for f in fields(state.demand)
            if f.name not in ("prefill", "decode")
        }
    for name in ("num_running", "num_waiting", "queued_prefill_tokens", "kv_use", "busy"):
        inputs[f"sum_{name}"] = sum(getattr(replica, name) for replica in state.replicas)
    return inputs
