"""The cost policy and those that force its kind. `docs/router.md` lists their reasons."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np

from baton.router.config import RouterConfig
from baton.router.costs import (
    CostModel,
    DecodeAt,
    DecodeSide,
    LocalSide,
    PrefillAt,
    PrefillSide,
)
from baton.router.decision import Candidate, Plan, RouteRequest
from baton.router.pools import Mask, Pools, prefix_hits, tie_noise
from baton.router.prefix_index import Prefixes
from baton.router.view import ClusterView, Columns, Floats

# Pairs of the best so many decode and prefill workers are priced with the transfer between them.
_NUM_PAIRED: Final = 3
# Options that a plan remembers of each kind.
_NUM_REMEMBERED: Final = 3


def cost(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The cheapest of local and remote over all decode workers."""
    pools = Pools(view, request, config)
    priced = _Priced(view, index, request, config, rng, pools)
    local, remote = priced.local(), priced.remote()
    best = min(local + remote, key=_cost_of)
    if pools.stale:
        reason = "stale_view"
    elif not best.candidate.prefill:
        tail = priced.side.short_tail[best.decode_row]
        reason = pools.why_none or ("short_uncached_tail" if tail else "local_cheaper")
    else:
        cheapest_local = min(local, key=_cost_of).candidate
        # The margin may have paid for the handshake; then it was not cheaper outright.
        outright = best.candidate.cost_s - min(best.candidate.extra_s, 0.0) <= cheapest_local.cost_s
        reason = "remote_cheaper" if outright else "remote_idle"
    return priced.plan(best, local + remote, reason)


def always_local(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The decode worker where a local prefill is cheapest."""
    pools = Pools(view, request, config)
    priced = _Priced(view, index, request, config, rng, pools)
    options = priced.local()
    return priced.plan(min(options, key=_cost_of), options, pools.reason("always_local"))


def always_remote(
    view: ClusterView,
    index: Prefixes,
    request: RouteRequest,
    config: RouterConfig,
    rng: random.Random,
) -> Plan:
    """The cheapest remote plan, whatever local would cost; local where there is no remote."""
    pools = Pools(view, request, config)
    priced = _Priced(view, index, request, config, rng, pools)
    options = priced.remote(short_tails=True) or priced.local()
    reason = pools.reason(pools.why_none or "always_remote")
    return priced.plan(min(options, key=_cost_of), options, reason)


@dataclass(slots=True)
class _Option:
    candidate: Candidate
    decode_row: int
    prefill_rows: tuple[int, ...] = ()


def _cost_of(option: _Option) -> float:
    return option.candidate.cost_s


class _Priced:
    """One request's prices, and the options worth a look."""

    def __init__(
        self,
        view: ClusterView,
        index: Prefixes,
        request: RouteRequest,
        config: RouterConfig,
        rng: random.Random,
        pools: Pools,
    ) -> None:
        self._config = config
        self._pools = pools
        decode, prefill = pools.decode, pools.prefill
        self._hits = prefix_hits(index, request, (decode, prefill))
        self._model = CostModel(pools.view, request, config, self._hits)
        self._noise = tie_noise(rng, len(decode) + len(prefill))
        self.side: DecodeSide = self._model.decode_side()

    def local(self) -> list[_Option]:
        """The cheapest local options, one a decode worker."""
        decode = self._pools.decode
        prices = self._model.local(self.side)
        masked = _masked(prices.cost_s, self._pools.usable, decode)
        rows = _lowest(masked + self._noise[: len(decode)], _NUM_REMEMBERED)
        return [self._local_option(row, prices) for row in rows]

    def remote(self, *, short_tails: bool = False) -> list[_Option]:
        """The best prefill workers for each of the cheapest decode workers, none if none is."""
        pools, side = self._pools, self.side
        if pools.why_none:
            return []
        allowed = pools.usable
        # Where a decode worker has next to nothing to compute there is nobody to protect from it.
        idle = not (side.short_tail.any() and (pools.usable & side.short_tail).any())
        if not idle and not short_tails:
            allowed = pools.usable & ~side.short_tail
        prefill = self._model.prefill_side(prefer_idle=idle)
        num_decode = len(pools.decode)
        own_s = _masked(prefill.own_s, pools.usable_prefill, pools.prefill)
        own_s = own_s + self._noise[num_decode:]
        # What is left to choose a decode worker by, before each pair's transfer.
        moved_s = self._config.itl_weight * side.num_new * self._model.typical_move_s_per_token()
        decode_s = side.decode_s + side.room_s + side.extra_s + moved_s
        decode_s = _masked(decode_s, allowed, pools.decode) + self._noise[:num_decode]
        prefill_rows = _lowest(own_s, _NUM_PAIRED)
        decode_rows = _lowest(decode_s, _NUM_PAIRED)
        return self._paired(decode_rows, prefill_rows, prefill) if decode_rows else []

    def plan(self, best: _Option, options: list[_Option], reason: str) -> Plan:
        pools = self._pools
        kept = best.prefill_rows[: self._config.max_prefill_targets]
        return Plan(
            decode=pools.decode.workers[best.decode_row].member,
            prefill=tuple(pools.prefill.workers[row].member for row in kept),
            reason=pools.named_blind(reason),
            ttft_s=best.candidate.ttft_s,
            num_cached_tokens=int(self.side.num_cached[best.decode_row]),
            candidates=tuple(option.candidate for option in options),
        )

    def _local_option(self, row: int, prices: LocalSide) -> _Option:
        side = self.side
        candidate = Candidate(
            self._pools.decode.workers[row].member.worker_id,
            "",
            float(prices.ttft_s[row]),
            float(prices.slo_s[row]),
            float(prices.queue_s[row]),
            float(prices.interference_s[row]),
            float(side.decode_s[row]),
            0.0,
            0.0,
            float(side.extra_s[row]),
            float(prices.cost_s[row]),
        )
        return _Option(candidate, row)

    def _paired(self, rows: list[int], others: list[int], prefill: PrefillSide) -> list[_Option]:
        """Each decode worker's cheapest pair, and its other prefill workers in order of price.

        A few pairs: plain numbers are quicker here than arrays.
        """
        noise = self._noise[len(self._pools.decode) :]
        sides = [prefill.at(other) for other in others]
        options = []
        for row in rows:
            decode = self.side.at(row)
            pairs = []
            for other, side in zip(others, sides, strict=True):
                priced = self._pair(decode, side, self._model.move_s(row, other, decode, side))
                pairs.append((priced.cost_s + noise[other], other, priced))
            pairs.sort()
            options.append(_Option(pairs[0][2], row, tuple(other for _, other, _ in pairs)))
        return options

    def _pair(self, decode: DecodeAt, prefill: PrefillAt, move_s: float) -> Candidate:
        # Blocks are reserved when a prompt is about to start.
        wait_s = max(prefill.wait_s, decode.room_s)
        ttft_s = wait_s + prefill.compute_s + self._pools.view.handshake_s
        slo_s = self._model.late_at_s(ttft_s)
        extra_s = decode.extra_s - prefill.preference_s
        return Candidate(
            decode.worker_id,
            prefill.worker_id,
            ttft_s,
            slo_s,
            prefill.queue_s,
            0.0,
            decode.decode_s,
            0.0,
            move_s,
            extra_s,
            ttft_s + slo_s + prefill.queue_s + decode.decode_s + move_s + extra_s,
        )


def _masked(values: Floats, mask: Mask, pool: Columns) -> Floats:
    """Infinite where the mask is not set."""
    return values if mask is pool.everybody else np.where(mask, values, np.inf)


def _lowest(values: Floats, count: int) -> list[int]:
    """Rows of the `count` lowest values that are not infinite, lowest first."""
    if len(values) > count:
        found = [(values[row], row) for row in values.argpartition(count)[:count].tolist()]
    else:
        found = [(value, row) for row, value in enumerate(values.tolist())]
    return [row for value, row in sorted(found) if value < np.inf]
