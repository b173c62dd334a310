"""Prices, in seconds, of the ways to serve one request (`docs/router.md` derives them).

Plain numbers, one worker at a time: only the few workers that `router/shortlist.py` names are
priced, and for a few an array operation costs more than the arithmetic in it.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from baton.router.config import RouterConfig
from baton.router.decision import Candidate, Kept, RouteRequest
from baton.router.misses import lose_room, miss_probability
from baton.router.times import TransferTimes
from baton.router.view import Figures

# Price of a second after the objective, beside one before it.
_LATER_WEIGHT: Final = 0.05
# The time of a prompt that comes next, as a share of the objective.
_NEXT_PROMPT: Final = 0.1
# A worker without room that frees nothing is not waited for for ever, only last of all.
_LONGEST_ROOM_WAIT_S: Final = 60.0


class DecodeAt(NamedTuple):
    """What a plan costs at one decode worker, the same for local and every prefill worker.

    kept: what is there or in slower tiers. num_others: who decodes there beside it; itl_miss: the
    probability that those miss their objective as it is. short_tail: nearly all of the prompt is
    there. fullness: of its KV memory, with this request and all that wait for room. own_s: all that
    there is to choose by before it is known what it is paired with.
    """

    row: int
    figures: Figures
    num_cached: int
    kept: Kept
    num_new: int
    num_others: float
    itl_miss: float
    fullness: float
    decode_s: float
    room_s: float
    extra_s: float
    own_s: float
    short_tail: bool


class LocalAt(NamedTuple):
    """What a local prefill costs at one decode worker."""

    at: DecodeAt
    ttft_s: float
    slo_s: float
    queue_s: float
    interference_s: float
    cost_s: float


class PrefillAt(NamedTuple):
    """What a remote prefill costs at one prefill worker, the same for every decode worker.

    extra_s: an adapter to load, less the preference. own_s: all that does not depend on the decode
    worker. load_s: of bringing `num_cached` tokens from slower tiers, or from the decode worker in
    row `pull_row`; -1: from none.
    """

    row: int
    figures: Figures
    num_new: int
    num_cached: int
    pull_row: int
    wait_s: float
    load_s: float
    compute_s: float
    ttft_s: float
    slo_s: float
    queue_s: float
    preference_s: float
    extra_s: float
    own_s: float


class PairAt(NamedTuple):
    """What a remote prefill costs with one pair of workers."""

    at: DecodeAt
    prefill: PrefillAt
    ttft_s: float
    slo_s: float
    queue_s: float
    move_s: float
    cost_s: float


class Prices:
    """Of one request. far: pushes of KV between workers that are not near to each other.
    backlog_s: how long those that are at prefill workers wait on average.
    """

    __slots__ = (
        "_backlog_s",
        "_block_size",
        "_config",
        "_handshake_s",
        "_itl_slo_s",
        "_itl_weight",
        "_kv_bytes",
        "_moved_token_s",
        "_num_blocks",
        "_num_output",
        "_num_tokens",
        "_output_tokens",
        "_ttft_slo_s",
    )

    def __init__(
        self,
        request: RouteRequest,
        config: RouterConfig,
        *,
        kv_bytes_per_token: int,
        handshake_s: float,
        far: TransferTimes,
        backlog_s: float,
    ) -> None:
        self._config = config
        self._backlog_s = backlog_s
        self._ttft_slo_s = config.ttft_slo_s
        self._itl_slo_s = config.itl_slo_s
        self._itl_weight = config.itl_weight
        self._kv_bytes = kv_bytes_per_token
        self._handshake_s = handshake_s
        self._moved_token_s = config.itl_weight * far.per_byte_s * kv_bytes_per_token
        self._block_size = request.block_size
        self._num_tokens = request.num_prompt_tokens
        self._num_blocks = request.num_prompt_tokens // request.block_size + 1
        self._num_output = min(request.max_tokens, config.expected_output_tokens)
        # Each of its tokens is attended to while it decodes; its own come one by one.
        self._output_tokens = self._num_tokens + 0.5 * self._num_output

    def decode(
        self, row: int, figures: Figures, num_cached: int, kept: Kept, extra_s: float
    ) -> DecodeAt:
        """num_cached: tokens of the prompt that the worker holds, kept: has in any place."""
        num_hits = num_cached // self._block_size
        # The last token is always computed: its logits choose the first output token.
        num_new = max(self._num_tokens - num_cached, 1)
        missing = (1.0 + figures.in_flight_requests) * (self._num_blocks - num_hits)
        # Meanwhile half of those that run there leave.
        joining, num_waiting = self._joining(figures), figures.waiting_requests
        unplaced = max(0.0, joining * figures.unplaced_blocks - 0.5 * figures.used_blocks)
        missing += unplaced - figures.free_blocks
        room_s = self._room_s(figures, missing) if missing > 0.0 else 0.0
        # This request is slowed by each of the others, and each of the others by this one.
        itl_slo_s, itl_s = self._itl_slo_s, figures.itl_s
        num_here = figures.pending_requests - num_waiting
        num_others = num_here + max(0.0, joining * num_waiting - 0.5 * num_here)
        growth_s = figures.decode_row_s + self._output_tokens * figures.decode_kv_token_s
        slowdown_s = figures.pace_s - figures.decode_fixed_s + (1.0 + num_others) * growth_s
        now = miss_probability(itl_s / itl_slo_s)
        then = miss_probability((itl_s + growth_s) / itl_slo_s)
        missed = num_others * (then - now) + then
        total_blocks = figures.used_blocks + figures.free_blocks
        full = (figures.used_blocks + unplaced) / total_blocks
        fuller = full + (self._num_blocks - num_hits) / total_blocks
        missed += num_others * lose_room(full, fuller)
        decode_s = self._itl_weight * self._num_output * slowdown_s + self._ttft_slo_s * missed
        own_s = decode_s + room_s + extra_s + num_new * self._moved_token_s
        short = num_new < self._config.min_remote_tokens and num_cached > 0
        return DecodeAt(
            row,
            figures,
            num_cached,
            kept,
            num_new,
            num_others,
            now,
            fuller,
            decode_s,
            room_s,
            extra_s,
            own_s,
            short,
        )

    def local(self, at: DecodeAt) -> LocalAt:
        """The prompt computed where it is decoded."""
        figures, config = at.figures, self._config
        load_s, num_new, num_cached = self.brought(figures, at.num_cached, at.kept)
        compute_s = _compute_s(figures, num_new, num_cached)
        wait_s = figures.wait_s
        ttft_s = (wait_s if wait_s > at.room_s else at.room_s) + load_s + compute_s
        # The first few tokens ride on a step that runs anyway: nobody waits for those.
        riding = config.min_remote_tokens / num_new
        # A step with prompt tokens does the work of a decode step besides.
        stall_s = compute_s * (1.0 - riding) - figures.decode_fixed_s
        interference_s = 0.0
        if riding < 1.0 and stall_s > 0.0:
            waiting = at.num_others + config.expected_arrivals
            # Spread over the tokens of whoever waits for it, those prompts included that wait
            # already.
            itl_s = figures.itl_s + wait_s / self._num_output
            before = miss_probability(itl_s / self._itl_slo_s)
            after = miss_probability((itl_s + stall_s / self._num_output) / self._itl_slo_s)
            # Whoever runs there keeps its memory for as much longer.
            longer = 1.0 + stall_s / (self._num_output * figures.itl_s)
            missed = after - before + lose_room(at.fullness, at.fullness * longer)
            interference_s = waiting * (self._itl_weight * stall_s + self._ttft_slo_s * missed)
        # Those that wait here are taken to have prompts like this one.
        held_up_s = max(at.room_s - wait_s, 0.0)
        num_queued = figures.pending_tokens / self._num_tokens
        queue_s = self._queue_s(num_queued, wait_s, compute_s + held_up_s)
        slo_s = self._late_s(ttft_s)
        cost_s = ttft_s + slo_s + queue_s + interference_s + at.decode_s + at.extra_s
        return LocalAt(at, ttft_s, slo_s, queue_s, interference_s, cost_s)

    def prefill(
        self,
        row: int,
        figures: Figures,
        num_cached: int,
        kept: Kept,
        extra_s: float,
        *,
        prefer_idle: bool,
    ) -> PrefillAt:
        """num_cached, kept, extra_s: see `decode`. prefer_idle: the margin counts."""
        load_s, num_new, num_cached = self.brought(figures, num_cached, kept)
        idle = prefer_idle and not figures.pending_tokens and not figures.pending_requests
        preference_s = self._config.remote_margin_s if idle else 0.0
        extra = (preference_s, extra_s - preference_s)
        return self._prefill_at(row, figures, (num_new, num_cached, -1), load_s, extra)

    def pulled(
        self, prefill: PrefillAt, row: int, lent: tuple[int, float], times: TransferTimes
    ) -> PrefillAt:
        """With what the decode worker in that row has fetched first, if that is quicker. Asking
        takes as long as for a prompt.

        lent: how many tokens, and minus the seconds of loading them there. times: of pushes.
        """
        figures, num_cached = prefill.figures, lent[0]
        num_new = max(self._num_tokens - num_cached, 1)
        num_bytes = (num_cached - prefill.num_cached) * self._kv_bytes
        pull_s = self._handshake_s - lent[1] + times.fixed_s + num_bytes * times.per_byte_s
        computing_s = pull_s + _compute_s(figures, num_new, num_cached)
        if computing_s >= prefill.load_s + prefill.compute_s:
            return prefill
        tokens = (num_new, num_cached, row)
        extra = (prefill.preference_s, prefill.extra_s)
        return self._prefill_at(prefill.row, figures, tokens, pull_s, extra)

    def _prefill_at(
        self,
        row: int,
        figures: Figures,
        tokens: tuple[int, int, int],
        load_s: float,
        extra: tuple[float, float],
    ) -> PrefillAt:
        """tokens: how many are new, how many cached, and from which row they come. extra: the
        preference, and `PrefillAt.extra_s`.
        """
        compute_s, wait_s = _compute_s(figures, tokens[0], tokens[1]), figures.wait_s
        queue_s = self._queue_s(figures.pending_requests, wait_s, compute_s)
        ttft_s = wait_s + load_s + compute_s + self._handshake_s
        slo_s = self._late_s(ttft_s)
        return PrefillAt(
            row,
            figures,
            *tokens,
            wait_s,
            load_s,
            compute_s,
            ttft_s,
            slo_s,
            queue_s,
            *extra,
            own_s=ttft_s + slo_s + queue_s + extra[1],
        )

    def brought(self, figures: Figures, num_cached: int, kept: Kept) -> tuple[float, int, int]:
        """Seconds of loading from slower tiers, and tokens that are new and cached then: as the
        worker decides, it loads from each where that is quicker than computing."""
        best = (0.0, num_new := max(self._num_tokens - num_cached, 1), num_cached)
        if kept.num_tokens <= num_cached:
            return best
        best_s = _compute_s(figures, num_new, num_cached)
        num_near = max(kept.num_near, num_cached)
        load_s = (num_near - num_cached) * figures.load_near_s
        far_s = load_s + (kept.num_tokens - num_near) * max(figures.load_far_s, figures.load_near_s)
        for loading_s, num_there in ((load_s, num_near), (far_s, kept.num_tokens)):
            num_left = max(self._num_tokens - num_there, 1)
            total_s = loading_s + _compute_s(figures, num_left, num_there)
            if total_s < best_s:
                best_s, best = total_s, (loading_s, num_left, num_there)
        return best

    def pair(self, at: DecodeAt, prefill: PrefillAt, times: TransferTimes) -> PairAt:
        """The prompt computed by a prefill worker. times: of pushes between the two."""
        token_s, num_new = times.per_byte_s * self._kv_bytes, at.num_new
        # KV that is still on its way when the prefill worker is done makes the gap after the first
        # token longer. Computing hides all but the last chunk.
        last_chunk_s = token_s * min(num_new, prefill.figures.chunk_tokens)
        late_s = times.fixed_s + max(last_chunk_s, token_s * num_new - prefill.compute_s)
        then = miss_probability((at.figures.itl_s + late_s / self._num_output) / self._itl_slo_s)
        move_s = self._itl_weight * late_s + self._ttft_slo_s * (then - at.itl_miss)
        ttft_s, slo_s, queue_s = prefill.ttft_s, prefill.slo_s, prefill.queue_s
        cost_s = prefill.own_s + at.decode_s + at.extra_s + move_s
        if at.room_s > prefill.wait_s:
            # Blocks are reserved when a prompt is about to start. Until there are any it holds up
            # those behind it, wherever they are to be decoded.
            held_up_s = at.room_s - prefill.wait_s
            ttft_s += held_up_s
            slo_s = self._late_s(ttft_s)
            num_queued = prefill.figures.pending_requests
            queue_s = self._queue_s(num_queued, prefill.wait_s, prefill.compute_s + held_up_s)
            cost_s += ttft_s + slo_s + queue_s
            cost_s -= prefill.ttft_s + prefill.slo_s + prefill.queue_s
        return PairAt(at, prefill, ttft_s, slo_s, queue_s, move_s, cost_s)

    def local_candidate(self, local: LocalAt, decode: str) -> Candidate:
        """For those who want to know why. decode: the worker's name."""
        at = local.at
        return Candidate(
            decode,
            "",
            local.ttft_s,
            local.slo_s,
            local.queue_s,
            local.interference_s,
            at.decode_s,
            0.0,
            0.0,
            at.extra_s,
            local.cost_s,
        )

    def remote_candidate(self, pair: PairAt, decode: str, prefill: str) -> Candidate:
        """For those who want to know why. decode, prefill: the workers' names."""
        at, other = pair.at, pair.prefill
        return Candidate(
            decode,
            prefill,
            pair.ttft_s,
            pair.slo_s,
            pair.queue_s,
            0.0,
            at.decode_s,
            0.0,
            pair.move_s,
            at.extra_s + other.extra_s,
            pair.cost_s,
        )

    def _late_s(self, ttft_s: float) -> float:
        """What is added to a time to first token for its objective.

        Once it is missed, being later still weighs less: a prompt that is late wherever it goes
        should go where it harms nobody.
        """
        slo_s = self._ttft_slo_s
        added_s = slo_s * miss_probability(ttft_s / slo_s)
        return added_s if ttft_s <= slo_s else added_s - (1.0 - _LATER_WEIGHT) * (ttft_s - slo_s)

    def _queue_s(self, num_queued: float, wait_s: float, compute_s: float) -> float:
        """What prompts that come after this one lose to it.

        As many will come within the wait as came before (Little's law), and one more; each waits
        for all of this one. Where they are late anyway, nothing is lost.
        """
        slo_s = self._ttft_slo_s
        before = wait_s / slo_s + _NEXT_PROMPT
        missed = miss_probability(before + compute_s / slo_s) - miss_probability(before)
        return slo_s * (num_queued + 1.0) * missed

    def _joining(self, figures: Figures) -> float:
        """Of those that wait, the share that decodes there beside this request, on average over its
        time: they come no faster than prefill workers' queues let them."""
        if not figures.waiting_requests:
            return 0.0
        ratio = self._backlog_s / (self._num_output * figures.itl_s)
        return 1.0 - 0.5 * ratio if ratio < 1.0 else 0.5 / ratio

    def _room_s(self, figures: Figures, missing: float) -> float:
        """Until enough of what runs there has ended to make room for the missing blocks."""
        # What runs is on average half done, and gives all its blocks back when it is.
        freed_per_s = figures.used_blocks / (self._num_output * figures.itl_s)
        return min(missing / max(freed_per_s, 1e-9), _LONGEST_ROOM_WAIT_S)


def _compute_s(figures: Figures, num_new: int, num_cached: int) -> float:
    """As `PrefillTimes.predict`."""
    return (
        math.ceil(num_new / figures.chunk_tokens) * figures.chunk_s
        + num_new * figures.token_s
        + num_new * (num_cached + 0.5 * num_new) * figures.pair_s
    )
