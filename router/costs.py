"""Prices, in seconds, of the ways to serve one request (`docs/router.md` derives them).

Arrays are float64 [num_workers] of a pool, in the order of its `Columns`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from baton.router.config import RouterConfig
from baton.router.decision import RouteRequest
from baton.router.times import Near
from baton.router.view import ClusterView, Column, Columns, Floats

# How surely a request misses an objective that it is predicted to meet by a given factor: at 0.8 of
# it one in seven, at 0.5 one in 250, at 1.25 six in seven.
# Price of a second after the objective, beside one before it.
_LATER_WEIGHT: Final = 0.25
# The time of a prompt that comes next, as a share of the objective.
_NEXT_PROMPT: Final = 0.1
# A worker without room that frees nothing is not waited for for ever, only last of all.
_LONGEST_ROOM_WAIT_S: Final = 60.0


def miss_probability(ratio: Floats) -> Floats:
    """Of an objective, by predicted over wanted time: 1 / (1 + ratio ** -8)."""
    square = ratio * ratio
    fourth = square * square
    eighth = fourth * fourth
    # However far beyond the objective, this is a large number, but never infinite.
    found: Floats = eighth / (1.0 + eighth)
    return found


def _miss(ratio: float) -> float:
    eighth = ratio**8
    return eighth / (1.0 + eighth)


class DecodeAt(NamedTuple):
    """One decode worker's share of a remote plan."""

    worker_id: str
    num_new: float
    decode_s: float
    room_s: float
    extra_s: float


class PrefillAt(NamedTuple):
    """One prefill worker's share of a remote plan."""

    worker_id: str
    wait_s: float
    compute_s: float
    preference_s: float
    queue_s: float


@dataclass(slots=True)
class DecodeSide:
    """What a plan costs at each decode worker, the same for local and every prefill worker."""

    num_cached: Floats
    num_new: Floats
    decode_s: Floats
    room_s: Floats
    extra_s: Floats
    # Nearly all of the prompt is there: bool [num_workers].
    short_tail: npt.NDArray[np.bool_]
    pool: Columns

    def at(self, row: int) -> DecodeAt:
        return DecodeAt(
            self.pool.workers[row].member.worker_id,
            float(self.num_new[row]),
            float(self.decode_s[row]),
            float(self.room_s[row]),
            float(self.extra_s[row]),
        )


@dataclass(slots=True)
class LocalSide:
    """What a local prefill costs at each decode worker."""

    ttft_s: Floats
    slo_s: Floats
    queue_s: Floats
    interference_s: Floats
    cost_s: Floats


@dataclass(slots=True)
class PrefillSide:
    """What a remote prefill costs at each prefill worker, the same for every decode worker."""

    num_cached: Floats
    wait_s: Floats
    compute_s: Floats
    preference_s: Floats
    queue_s: Floats
    # All that does not depend on the decode worker: orders them.
    own_s: Floats
    pool: Columns

    def at(self, row: int) -> PrefillAt:
        return PrefillAt(
            self.pool.workers[row].member.worker_id,
            float(self.wait_s[row]),
            float(self.compute_s[row]),
            float(self.preference_s[row]),
            float(self.queue_s[row]),
        )


class CostModel:
    """Prices for one request over one view.

    hits: blocks of the prompt that each worker holds, for the decode and for the prefill pool.
    """

    def __init__(
        self,
        view: ClusterView,
        request: RouteRequest,
        config: RouterConfig,
        hits: tuple[Floats, Floats],
    ) -> None:
        self.view = view
        self.decode_pool, self.prefill_pool = view.pools()
        self._request = request
        self._config = config
        self._hits = hits
        self._num_tokens = float(request.num_prompt_tokens)
        self._num_output = float(min(request.max_tokens, config.expected_output_tokens))

    def decode_side(self) -> DecodeSide:
        pool, config, request = self.decode_pool, self._config, self._request
        num_cached = self._hits[0] * request.block_size
        uncached = self._num_tokens - num_cached
        return DecodeSide(
            num_cached,
            # The last token is always computed: its logits choose the first output token.
            np.maximum(uncached, 1.0),
            self._decode_s(pool),
            self._room_s(pool),
            self._extra_s(pool),
            (num_cached > 0) & (uncached < config.min_remote_tokens),
            pool,
        )

    def local(self, side: DecodeSide) -> LocalSide:
        pool, config = self.decode_pool, self._config
        compute_s = _compute_s(pool, side.num_new, side.num_cached)
        ttft_s = np.maximum(pool[Column.WAIT_S], side.room_s) + compute_s
        # The first few tokens ride on a step that runs anyway: nobody waits for those.
        riding = np.minimum(config.min_remote_tokens / side.num_new, 1.0)
        # A step with prompt tokens does the work of a decode step besides.
        stall_s = np.maximum(compute_s * (1.0 - riding) - pool[Column.DECODE_FIXED_S], 0.0)
        waiting = pool[Column.PENDING_REQUESTS] + config.expected_arrivals
        # Spread over the tokens of whoever waits for it, those prompts included that wait already.
        itl_s = pool[Column.ITL_S] + pool[Column.WAIT_S] / self._num_output
        missed = self._miss_itl(itl_s + stall_s / self._num_output) - self._miss_itl(itl_s)
        interference_s = waiting * (config.itl_weight * stall_s + config.ttft_slo_s * missed)
        # Those that wait here are taken to have prompts like this one.
        num_queued = pool[Column.PENDING_TOKENS] / self._num_tokens
        queue_s = self._queue_s(num_queued, pool[Column.WAIT_S], compute_s)
        slo_s = self.late_s(ttft_s)
        cost_s = ttft_s + slo_s + queue_s + interference_s + side.decode_s + side.extra_s
        return LocalSide(ttft_s, slo_s, queue_s, interference_s, cost_s)

    def prefill_side(self, *, prefer_idle: bool) -> PrefillSide:
        pool, config = self.prefill_pool, self._config
        num_cached = self._hits[1] * self._request.block_size
        compute_s = _compute_s(pool, np.maximum(self._num_tokens - num_cached, 1.0), num_cached)
        wait_s = pool[Column.WAIT_S]
        idle = (pool[Column.PENDING_TOKENS] == 0) & (pool[Column.PENDING_REQUESTS] == 0)
        preference_s = config.remote_margin_s * (idle if prefer_idle else np.zeros(len(pool)))
        queue_s = self._queue_s(pool[Column.PENDING_REQUESTS], wait_s, compute_s)
        ttft_s = wait_s + compute_s
        own_s = ttft_s + self.late_s(ttft_s) + queue_s - preference_s
        return PrefillSide(num_cached, wait_s, compute_s, preference_s, queue_s, own_s, pool)

    def late_s(self, ttft_s: Floats) -> Floats:
        """What is added to a time to first token for its objective.

        Once it is missed, being later still weighs less: a prompt that is late wherever it goes
        should go where it harms nobody.
        """
        slo_s = self._config.ttft_slo_s
        later_s = np.maximum(ttft_s - slo_s, 0.0)
        added: Floats = slo_s * miss_probability(ttft_s / slo_s) - (1.0 - _LATER_WEIGHT) * later_s
        return added

    def _queue_s(self, num_queued: Floats, wait_s: Floats, compute_s: Floats) -> Floats:
        """What prompts that come after this one lose to it.

        As many will come within the wait as came before (Little's law), and one more; each waits
        for all of this one. Where they are late anyway, nothing is lost.
        """
        slo_s = self._config.ttft_slo_s
        before = wait_s / slo_s + _NEXT_PROMPT
        missed = miss_probability(before + compute_s / slo_s) - miss_probability(before)
        lost: Floats = slo_s * (num_queued + 1.0) * missed
        return lost

    def late_at_s(self, ttft_s: float) -> float:
        """As `late_s`, for one."""
        slo_s = self._config.ttft_slo_s
        later_s = max(ttft_s - slo_s, 0.0)
        return slo_s * _miss(ttft_s / slo_s) - (1.0 - _LATER_WEIGHT) * later_s

    def move_s(self, row: int, other: int, decode: DecodeAt, prefill: PrefillAt) -> float:
        """Price of KV that is still on its way when the prefill worker is done: a longer gap after
        the first token. row, other: of the decode and of the prefill worker."""
        config = self._config
        nearness = self.decode_pool.near(row, self.prefill_pool, other)
        times = self.view.transfers.between(prefill.worker_id, decode.worker_id, nearness)
        token_s = times.per_byte_s * self.view.kv_bytes_per_token
        last_chunk = min(decode.num_new, float(self.prefill_pool[Column.CHUNK_TOKENS][other]))
        # Computing hides all but the last chunk.
        exposed_s = max(token_s * last_chunk, token_s * decode.num_new - prefill.compute_s)
        late_s = times.fixed_s + exposed_s
        itl_s = float(self.decode_pool[Column.ITL_S][row])
        then = _miss((itl_s + late_s / self._num_output) / config.itl_slo_s)
        missed = then - _miss(itl_s / config.itl_slo_s)
        return config.itl_weight * late_s + config.ttft_slo_s * missed

    def typical_move_s_per_token(self) -> float:
        """Of KV, between workers that are not near to each other."""
        return self.view.transfers.by_nearness[Near.FAR].per_byte_s * self.view.kv_bytes_per_token

    def _miss_itl(self, itl_s: Floats) -> Floats:
        return miss_probability(itl_s / self._config.itl_slo_s)

    def _decode_s(self, pool: Columns) -> Floats:
        """This request is slowed by each of the others, and each of the others by this one."""
        config = self._config
        num_others = pool[Column.PENDING_REQUESTS]
        tokens = self._num_tokens + 0.5 * self._num_output
        growth_s = pool[Column.DECODE_ROW_S] + tokens * pool[Column.DECODE_KV_TOKEN_S]
        step_s = pool[Column.STEP_S]
        if pool.grouped:
            step_s = _group_pace(pool, step_s)
        slowdown_s = step_s - pool[Column.DECODE_FIXED_S] + (1.0 + num_others) * growth_s
        now = self._miss_itl(pool[Column.ITL_S])
        then = self._miss_itl(pool[Column.ITL_S] + growth_s)
        missed = num_others * (then - now) + then
        priced: Floats = (
            config.itl_weight * self._num_output * slowdown_s + config.ttft_slo_s * missed
        )
        return priced

    def _room_s(self, pool: Columns) -> Floats:
        """Until enough of what runs there has ended to make room."""
        needed = self._request.num_prompt_tokens // self._request.block_size + 1.0 - self._hits[0]
        missing = (1.0 + pool[Column.IN_FLIGHT_REQUESTS]) * needed - pool[Column.FREE_BLOCKS]
        if not len(pool) or missing[missing.argmax()] <= 0.0:
            return np.zeros(len(pool))
        # What runs is on average half done, and gives all its blocks back when it is.
        freed_per_s = pool[Column.USED_BLOCKS] / (self._num_output * pool[Column.STEP_S])
        wait_s = np.maximum(missing, 0.0) / np.maximum(freed_per_s, 1e-9)
        bounded: Floats = np.minimum(wait_s, _LONGEST_ROOM_WAIT_S)
        return bounded

    def _extra_s(self, pool: Columns) -> Floats:
        request, config = self._request, self._config
        extra_s = np.zeros(len(pool))
        if request.adapter:
            extra_s += [
                0.0 if request.adapter in worker.adapters else config.adapter_load_s
                for worker in pool.workers
            ]
        if request.last_worker in pool.rows:
            extra_s[pool.rows[request.last_worker]] -= config.affinity_s
        return extra_s


def _compute_s(pool: Columns, num_new: Floats, num_cached: Floats) -> Floats:
    """As `PrefillTimes.predict`, for every worker."""
    num_chunks = np.ceil(num_new / pool[Column.CHUNK_TOKENS])
    pairs = num_new * (num_cached + 0.5 * num_new)
    seconds: Floats = (
        num_chunks * pool[Column.CHUNK_S]
        + num_new * pool[Column.TOKEN_S]
        + pairs * pool[Column.PAIR_S]
    )
    return seconds


def _group_pace(pool: Columns, step_s: Floats) -> Floats:
    """The slowest step of each worker's data-parallel group."""
    pace_s = step_s.copy()
    slowest: dict[str, float] = {}
    for row, worker in enumerate(pool.workers):
        if worker.group:
            slowest[worker.group] = max(slowest.get(worker.group, 0.0), step_s[row])
    for row, worker in enumerate(pool.workers):
        if worker.group:
            pace_s[row] = slowest[worker.group]
    return pace_s
