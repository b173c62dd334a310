"""The cheapest pools that serve a trace within its SLOs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from baton.protos.errors import ConfigError
from baton.simulator.config import SimConfig
from baton.simulator.outcome import Outcome
from baton.simulator.request import Trace
from baton.simulator.simulation import simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """One fleet and how it did."""

    prefill: int
    decode: int
    outcome: Outcome

    @property
    def workers(self) -> int:
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """`best` is the cheapest fleet that reaches the target, None where none of at most the allowed
    workers does. `tried` holds all that were simulated, in that order.
    """

    best: Sized | None
    tried: tuple[Sized, ...]

    def frontier(self) -> list[Sized]:
        """The best of each number of workers."""
        best: dict[int, Sized] = {}
        for sized in self.tried:
            known = best.get(sized.workers)
            if known is None or sized.outcome.attainment > known.outcome.attainment:
                best[sized.workers] = sized
        return [best[workers] for workers in sorted(best)]


def busy_workers(trace: Trace, config: SimConfig) -> float:
    """Workers that the trace's work alone would fill, with every prefix computed once and nothing
    waited for: fewer can't do.
    """
    prefill, decode = config.times.prefill_pool.prefill, config.times.decode_pool.decode
    seconds = 0.0
    known: set[bytes] = set()
    for request in trace.requests:
        num_known = sum(block_hash in known for block_hash in request.block_hashes)
        known.update(request.block_hashes)
        new = max(1, request.num_prompt_tokens - num_known * trace.block_tokens)
        kv_tokens = request.num_prompt_tokens + request.num_output_tokens / 2
        token_s = decode.per_row_s + kv_tokens * decode.per_kv_token_s
        seconds += new * prefill.per_token_s + request.num_output_tokens * token_s
    return seconds / trace.duration_s if trace.duration_s > 0 else 0.0


def plan_fleet(
    trace: Trace,
    config: SimConfig,
    *,
    target: float,
    max_workers: int,
    say: Callable[[Sized], None] = lambda sized: None,
) -> FleetPlan:
    """Grows the fleet one worker at a time from the least that could do, and of each size tries
    the splits around the best of the size before, going on uphill. Two sizes beyond the first that
    reaches `target` (the share of requests within both SLOs) complete the frontier. Raises
    ConfigError for a target that is no share.
    """
    if not 0 < target <= 1:
        raise ConfigError(f"target is {target}, but must be above 0 and at most 1", param="target")
    tried: dict[tuple[int, int], Sized] = {}
    best: Sized | None = None
    workers = min(max_workers, max(1, math.ceil(busy_workers(trace, config))))
    prefill = workers // 2
    while workers <= max_workers and (best is None or workers <= best.workers + 2):
        found = _best_split(trace, config, workers, prefill, tried, say)
        if best is None and found.outcome.attainment >= target:
            best = found
        prefill = found.prefill
        workers += 1
    return FleetPlan(best=best, tried=tuple(tried.values()))


def _best_split(
    trace: Trace,
    config: SimConfig,
    workers: int,
    prefill: int,
    tried: dict[tuple[int, int], Sized],
    say: Callable[[Sized], None],
) -> Sized:
    """Climbs from `prefill` to the split of `workers` that serves the most requests well."""

    def attempt(count: int) -> Sized:
        key = (count, workers - count)
        if key not in tried:
            fleet = replace(config, prefill=count, decode=workers - count)
            outcome = simulate(trace, fleet)
            tried[key] = Sized(prefill=count, decode=workers - count, outcome=outcome)
            say(tried[key])
        return tried[key]

    best = attempt(min(prefill, workers - 1))
    for step in (1, -1):
        while 0 <= best.prefill + step < workers:
            other = attempt(best.prefill + step)
            if other.outcome.attainment <= best.outcome.attainment:
                break
            best = other
    return best
