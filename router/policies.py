"""Routing policies: pure functions behind one signature. `docs/router.md` lists their reasons."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from baton.protos.errors import UnavailableError
from baton.router.config import RouterConfig
from baton.router.costs import CostModel, DecodeSide, PrefillSide
from baton.router.decision import Candidate, Plan, RouteRequest
from baton.router.prefix_index import PrefixIndex
from baton.router.view import ClusterView, WorkerState, WorkerView

Policy = Callable[[ClusterView, PrefixIndex, RouteRequest, RouterConfig, random.Random], Plan]


def cost(
    view: ClusterView,
    index: PrefixIndex,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The cheapest of local and remote over all decode workers."""
    prefill, why_none = _prefill_pool(view, request, config)
    sides, prices, pool = _price(view, index, request, config, rng, prefill)
    local = [_Option(prices.local(side), side, ()) for side in sides]
    remote = [
        _best_remote(side, pool, prices)
        for side in sides
        if pool and not prices.is_short_tail(side)
    ]
    best = min(local + remote, key=_cost_of)
    if _stale(sides, config):
        reason = "stale_view"
    elif not best.prefill:
        has_remote = any(option.side is best.side for option in remote)
        reason = why_none or ("local_cheaper" if has_remote else "short_uncached_tail")
    else:
        cheapest_local = min(local, key=_cost_of).candidate.cost_s
        outright = best.candidate.cost_s + best.candidate.preference_s <= cheapest_local
        reason = "remote_cheaper" if outright else "remote_idle"
    return _plan(best, local + remote, reason, config)


def always_local(
    view: ClusterView,
    index: PrefixIndex,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The decode worker where a local prefill is cheapest."""
    sides, prices, _ = _price(view, index, request, config, rng, [])
    local = [_Option(prices.local(side), side, ()) for side in sides]
    stale = _stale(sides, config)
    best = min(local, key=_cost_of)
    return _plan(best, local, "stale_view" if stale else "always_local", config)


def always_remote(
    view: ClusterView,
    index: PrefixIndex,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The cheapest remote plan, whatever local would cost; local where there is no remote."""
    prefill, why_none = _prefill_pool(view, request, config)
    sides, prices, pool = _price(view, index, request, config, rng, prefill)
    options = [
        _best_remote(side, pool, prices) if pool else _Option(prices.local(side), side, ())
        for side in sides
    ]
    stale = _stale(sides, config)
    best = min(options, key=_cost_of)
    return _plan(best, options, "stale_view" if stale else why_none or "always_remote", config)


def round_robin(
    view: ClusterView,
    index: PrefixIndex,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """Workers take turns by `request.sequence`; remote wherever a prefill worker is usable."""
    decode = usable_decode(view, request)
    chosen = decode[request.sequence % len(decode)].member
    prefill, why_none = _prefill_pool(view, request, config)
    if not prefill:
        return Plan(chosen, (), why_none)
    start = request.sequence % len(prefill)
    turn = prefill[start:] + prefill[:start]
    targets = tuple(worker.member for worker in turn[: config.max_prefill_targets])
    return Plan(chosen, targets, "round_robin")


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "cost": cost,
        "always_local": always_local,
        "always_remote": always_remote,
        "round_robin": round_robin,
    }
)


def usable_decode(view: ClusterView, request: RouteRequest) -> list[WorkerView]:
    """Decode workers that may take this request. Raises UnavailableError that counts the others."""
    usable = [worker for worker in view.decode if _usable(worker, request)]
    if usable:
        return usable
    num_draining = sum(worker.load.draining for worker in view.decode)
    num_excluded = sum(worker.member.worker_id in request.exclude for worker in view.decode)
    raise UnavailableError(
        f"no decode worker can take request {request.request_id}: of {len(view.decode)} known, "
        f"{num_draining} are draining and {num_excluded} already failed it"
    )


class _Option(NamedTuple):
    candidate: Candidate
    side: DecodeSide
    prefill: tuple[PrefillSide, ...]


def _cost_of(option: _Option) -> float:
    return option.candidate.cost_s


def _usable(worker: WorkerView, request: RouteRequest) -> bool:
    return (
        worker.state is WorkerState.UP
        and not worker.load.draining
        and worker.member.worker_id not in request.exclude
    )


def _stale(sides: Sequence[DecodeSide], config: RouterConfig) -> bool:
    # The pool mixes fresh and stale workers never: one is enough to know.
    return sides[0].worker.age_s > config.stale_after_s


def _decode_pool(
    view: ClusterView, request: RouteRequest, config: RouterConfig
) -> list[WorkerView]:
    usable = usable_decode(view, request)
    fresh = [worker for worker in usable if worker.age_s <= config.stale_after_s]
    if fresh:
        return fresh
    # No report can be believed: go by what this gateway itself has sent, and say so in the reason.
    fewest = min(worker.in_flight_requests for worker in usable)
    return [worker for worker in usable if worker.in_flight_requests == fewest]


def _prefill_pool(
    view: ClusterView, request: RouteRequest, config: RouterConfig
) -> tuple[list[WorkerView], str]:
    """Prefill workers that may take this request, or none and the reason."""
    if request.prompt_logprobs:
        # They are computed with the prompt, and only the decode worker reports them.
        return [], "prompt_logprobs"
    usable = [worker for worker in view.prefill if _usable(worker, request)]
    fresh = [worker for worker in usable if worker.age_s <= config.stale_after_s]
    if usable and not fresh:
        return [], "stale_prefill_view"
    return fresh, "" if fresh else "no_prefill_worker"


def _price(
    view: ClusterView,
    index: PrefixIndex,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
    prefill: list[WorkerView],
) -> tuple[list[DecodeSide], CostModel, list[PrefillSide]]:
    decode = _decode_pool(view, request, config)
    # `min` takes the first of equals, so a shuffle makes ties random.
    rng.shuffle(decode)
    rng.shuffle(prefill)
    # With prompt_logprobs every prompt token is computed again, whatever is cached.
    hits = {} if request.prompt_logprobs else index.hits(request.block_hashes)
    prices = CostModel(view, request, config)
    sides = [prices.decode_side(worker, hits.get(worker.member.worker_id, 0)) for worker in decode]
    # Where a decode worker has next to nothing to compute there is nobody to protect from it.
    prefer_idle = not any(prices.is_short_tail(side) for side in sides)
    pool = [
        prices.prefill_side(worker, hits.get(worker.member.worker_id, 0), prefer_idle=prefer_idle)
        for worker in prefill
    ]
    return sides, prices, pool


def _best_remote(side: DecodeSide, pool: Sequence[PrefillSide], prices: CostModel) -> _Option:
    order = sorted(pool, key=side.remote_cost_s)
    return _Option(prices.remote(side, order[0]), side, tuple(order))


def _plan(best: _Option, options: Sequence[_Option], reason: str, config: RouterConfig) -> Plan:
    targets = best.prefill[: config.max_prefill_targets]
    return Plan(
        decode=best.side.worker.member,
        prefill=tuple(target.worker.member for target in targets),
        reason=reason,
        ttft_s=best.candidate.ttft_s,
        num_cached_tokens=best.side.num_cached_tokens,
        candidates=tuple(option.candidate for option in options),
    )
