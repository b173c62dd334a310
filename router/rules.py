"""Fixed rules, for those who want one and to compare `cost` with."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from baton.router.config import RouterConfig
from baton.router.decision import Plan, RouteRequest
from baton.router.pools import Mask, Pools, prefix_hits, tie_noise
from baton.router.prefix_index import Prefixes, aligned
from baton.router.view import ClusterView, Column, Floats


class _Fixed:
    """Both pools with what the rules count: tokens, requests and blocks."""

    def __init__(
        self,
        view: ClusterView,
        index: Prefixes,
        request: RouteRequest,
        config: RouterConfig,
        rng: random.Random,
    ) -> None:
        self.pools = pools = Pools(view, request, config)
        self._config = config
        self.request = request
        self._noise = tie_noise(rng, len(pools.decode) + len(pools.prefill))
        held = prefix_hits(index, request, (pools.decode, pools.prefill))
        self.hits, self.prefill_hits = aligned(held, pools.decode), aligned(held, pools.prefill)
        self.has_prefill = bool(pools.usable_prefill.any())

    def decode_by(self, values: Floats) -> int:
        """The usable decode worker with the least; ties are random."""
        return _argmin(values, self.pools.usable, self._noise[: len(self.pools.decode)])

    def prefill_by(self, values: Floats) -> list[int]:
        """Usable prefill workers, least first."""
        mask = self.pools.usable_prefill
        noise = self._noise[len(self.pools.decode) :]
        order = np.lexsort((noise, np.where(mask, values, np.inf)))
        return [int(row) for row in order[: self._config.max_prefill_targets] if mask[row]]

    def kv_load(self, hits: Floats, pool: int) -> Floats:
        """Dynamo's KV router cost: blocks to prefill that are not cached, and blocks in use."""
        columns = (self.pools.decode, self.pools.prefill)[pool]
        size = self.request.block_size
        needed = self.request.num_prompt_tokens / size
        prefill = columns[Column.PENDING_TOKENS] / size + np.maximum(needed - hits / size, 0.0)
        load: Floats = prefill + columns[Column.USED_BLOCKS]
        return load

    def plan(self, decode: int, prefill: list[int], reason: str) -> Plan:
        pools = self.pools
        if not self.has_prefill:
            prefill, reason = [], pools.why_none
        num_cached = self.prefill_hits[prefill[0]] if prefill else self.hits[decode]
        return Plan(
            decode=pools.decode.workers[decode].member,
            prefill=tuple(pools.prefill.workers[row].member for row in prefill),
            reason=pools.named_cold(pools.named_blind(pools.reason(reason)), decode),
            num_cached_tokens=int(self.hits[decode]),
            num_new_tokens=max(self.request.num_prompt_tokens - int(num_cached), 1),
        )


Rule = Callable[[_Fixed, RouterConfig, random.Random], Plan]


def threshold(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """Dynamo's first rule (2025): remote for more than `max_local_prefill_tokens` that are not
    cached, while fewer than `max_prefill_queue` prompts wait."""
    del rng
    decode = fixed.decode_by(fixed.kv_load(fixed.hits, 0))
    waiting = fixed.pools.prefill[Column.PENDING_REQUESTS]
    # A queue that the whole pool draws from: what is being computed does not wait.
    num_waiting = float(np.maximum(waiting - 1.0, 0.0)[fixed.pools.usable_prefill].sum())
    if _num_uncached(fixed, decode) <= config.max_local_prefill_tokens:
        return fixed.plan(decode, [], "threshold_short")
    if num_waiting >= config.max_prefill_queue:
        return fixed.plan(decode, [], "threshold_queue_full")
    return fixed.plan(decode, fixed.prefill_by(waiting), "threshold_remote")


def isl_bounding(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """Dynamo 1.4's rule: local for less than `isl_tokens` and `isl_ratio` of the prompt."""
    del rng
    decode = fixed.decode_by(fixed.kv_load(fixed.hits, 0))
    if _is_short(fixed, config, decode):
        return fixed.plan(decode, [], "isl_short")
    return fixed.plan(decode, _by_kv_load(fixed), "isl_remote")


def isl_or_load(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """As `isl_bounding`, and local where the chosen prefill worker is busy."""
    del rng
    decode = fixed.decode_by(fixed.kv_load(fixed.hits, 0))
    if _is_short(fixed, config, decode):
        return fixed.plan(decode, [], "isl_short")
    prefill = _by_kv_load(fixed)
    if prefill and (
        fixed.pools.prefill[Column.PENDING_TOKENS][prefill[0]] > config.busy_prefill_tokens
    ):
        return fixed.plan(decode, [], "isl_prefill_busy")
    return fixed.plan(decode, prefill, "isl_remote")


def splitwise(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """Splitwise's mixed pool: each phase joins the shortest queue of its pool; a prompt whose pool
    is full borrows the decode worker with the fewest tokens waiting, which then does both."""
    del rng
    pools = fixed.pools
    prefill = fixed.prefill_by(pools.prefill[Column.PENDING_TOKENS])
    if prefill:
        waiting = pools.prefill[Column.PENDING_TOKENS][prefill[0]]
        wanted = waiting + fixed.request.num_prompt_tokens
        if waiting > 0 and wanted > config.max_pending_prompt_tokens:
            decode = fixed.decode_by(pools.decode[Column.PENDING_TOKENS])
            return fixed.plan(decode, [], "splitwise_mixed")
    return fixed.plan(fixed.decode_by(pools.decode[Column.USED_BLOCKS]), prefill, "splitwise")


def round_robin(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """Workers take turns by `request.sequence`; remote wherever a prefill worker is usable."""
    del rng
    turn = fixed.request.sequence
    decode = np.flatnonzero(fixed.pools.usable)
    prefill = np.flatnonzero(fixed.pools.usable_prefill)
    start = turn % max(len(prefill), 1)
    order = [int(row) for row in np.roll(prefill, -start)[: config.max_prefill_targets]]
    return fixed.plan(int(decode[turn % len(decode)]), order, "round_robin")


def least_loaded(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """The fewest requests decode it, the fewest waiting tokens prefill it."""
    del config, rng
    decode = fixed.decode_by(fixed.pools.decode[Column.PENDING_REQUESTS])
    prefill = fixed.prefill_by(fixed.pools.prefill[Column.PENDING_TOKENS])
    return fixed.plan(decode, prefill, "least_loaded")


def power_of_two(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """The less loaded of two random workers, in each pool (Mitzenmacher 2001)."""
    del config
    pools = fixed.pools
    two = _sample_two(pools.usable, rng)
    decode = min(two, key=lambda row: pools.decode[Column.PENDING_REQUESTS][row])
    prefill: list[int] = []
    if fixed.has_prefill:
        pair = _sample_two(pools.usable_prefill, rng)
        prefill = sorted(pair, key=lambda row: pools.prefill[Column.PENDING_TOKENS][row])
    return fixed.plan(decode, prefill, "power_of_two")


def prefix_aware(fixed: _Fixed, config: RouterConfig, rng: random.Random) -> Plan:
    """The longest cached prefix wins in each pool, then the fewest requests."""
    del config, rng
    pools = fixed.pools
    # Requests are far fewer than this: they only order equal prefixes.
    decode = fixed.decode_by(pools.decode[Column.PENDING_REQUESTS] - 1e6 * fixed.hits)
    prefill = fixed.prefill_by(pools.prefill[Column.PENDING_REQUESTS] - 1e6 * fixed.prefill_hits)
    return fixed.plan(decode, prefill, "prefix_aware")


def fixed_policy(
    rule: Rule,
) -> Callable[[ClusterView, Prefixes, RouteRequest, RouterConfig, random.Random], Plan]:
    """A rule behind the signature of every policy."""

    def policy(
        view: ClusterView,
        index: Prefixes,
        request: RouteRequest,
        config: RouterConfig,
        rng: random.Random,
    ) -> Plan:
        return rule(_Fixed(view, index, request, config, rng), config, rng)

    return policy


def _num_uncached(fixed: _Fixed, decode: int) -> float:
    return fixed.request.num_prompt_tokens - float(fixed.hits[decode])


def _is_short(fixed: _Fixed, config: RouterConfig, decode: int) -> bool:
    uncached = _num_uncached(fixed, decode)
    ratio = uncached / max(fixed.request.num_prompt_tokens, 1)
    return uncached < config.isl_tokens and ratio < config.isl_ratio


def _by_kv_load(fixed: _Fixed) -> list[int]:
    return fixed.prefill_by(fixed.kv_load(fixed.prefill_hits, 1))


def _argmin(values: Floats, mask: Mask, noise: Floats) -> int:
    masked = np.where(mask, values, np.inf)
    return int(np.argmin(np.where(masked == masked.min(), noise, np.inf)))


def _sample_two(mask: Mask, rng: random.Random) -> list[int]:
    rows = [int(row) for row in np.flatnonzero(mask)]
    return rng.sample(rows, 2) if len(rows) > 1 else rows
