"""Prices, in seconds, of the ways to serve one request (`docs/router.md` derives them)."""

from __future__ import annotations

from typing import NamedTuple

from baton.router.config import RouterConfig
from baton.router.decision import Candidate, RouteRequest
from baton.router.view import ClusterView, WorkerView


class PrefillSide(NamedTuple):
    """A prefill worker's share of a remote plan, the same for every decode worker."""

    worker: WorkerView
    compute_s: float
    preference_s: float
    # Waiting, computing and handshake, less the preference.
    own_cost_s: float


class DecodeSide(NamedTuple):
    """A decode worker's share of a plan, the same for local and every prefill worker."""

    worker: WorkerView
    num_cached_tokens: int
    decode_s: float
    no_room_s: float
    # Moving all KV that it lacks, and moving the last chunk of it.
    transfer_s: float
    last_chunk_s: float

    def remote_cost_s(self, prefill: PrefillSide) -> float:
        """What differs between prefill workers for this decode worker: orders them."""
        exposed_s = self.transfer_s - prefill.compute_s
        return prefill.own_cost_s + (
            exposed_s if exposed_s > self.last_chunk_s else self.last_chunk_s
        )


class CostModel:
    """Prices for one request over one view.

    A worker that has not measured its prefill rate is given the median of those that have: the
    workers of a fleet run one model, and pitting a measured worker against a prior would send
    everything to the unmeasured one. Only a fleet without any measurement uses the prior.
    """

    def __init__(self, view: ClusterView, request: RouteRequest, config: RouterConfig) -> None:
        self._request = request
        self._config = config
        measured = sorted(
            worker.load.prefill_tokens_per_s
            for worker in view.decode + view.prefill
            if worker.load.prefill_tokens_per_s > 0
        )
        self._typical_rate = (
            measured[len(measured) // 2] if measured else config.prefill_tokens_per_s
        )
        self._transfer_s_per_token = config.kv_bytes_per_token / config.transfer_bytes_per_s
        self._num_output_tokens = min(request.max_tokens, config.expected_output_tokens)

    def decode_side(self, worker: WorkerView, hit_blocks: int) -> DecodeSide:
        config = self._config
        load = worker.load
        growth = config.decode_step_growth
        # A measured step already carries those that run in it: take it back to a lone request's.
        lone_step_s = (
            load.decode_step_s / (1 + growth * max(load.num_running - 1, 0))
            if load.decode_step_s > 0
            else config.decode_step_s
        )
        # This request is slowed by each of the others, and each of the others by this one.
        decode_s = 2 * self._num_output_tokens * lone_step_s * growth * worker.pending_requests
        num_cached_tokens = hit_blocks * self._request.block_size
        num_moved = self._num_uncached(num_cached_tokens)
        return DecodeSide(
            worker,
            num_cached_tokens,
            decode_s,
            self._no_room_s(worker, hit_blocks),
            num_moved * self._transfer_s_per_token,
            min(num_moved, config.transfer_chunk_tokens) * self._transfer_s_per_token,
        )

    def local(self, side: DecodeSide) -> Candidate:
        config = self._config
        rate = self._rate(side.worker)
        num_uncached = self._num_uncached(side.num_cached_tokens)
        compute_s = num_uncached / rate
        ttft_s = side.worker.pending_tokens / rate + compute_s + side.no_room_s
        running = side.worker.pending_requests + config.expected_arrivals
        # The first few tokens ride on a step that runs anyway: nobody waits for those.
        num_disturbing = max(0, num_uncached - config.min_remote_tokens)
        interference_s = config.itl_weight * running * num_disturbing / rate
        return Candidate(
            side.worker.member.worker_id,
            "",
            ttft_s,
            interference_s,
            side.decode_s,
            0.0,
            ttft_s + interference_s + side.decode_s,
        )

    def is_short_tail(self, side: DecodeSide) -> bool:
        """True where the decode worker holds nearly all of the prompt."""
        num_uncached = self._request.num_prompt_tokens - side.num_cached_tokens
        return side.num_cached_tokens > 0 and num_uncached < self._config.min_remote_tokens

    def prefill_side(
        self, worker: WorkerView, hit_blocks: int, *, prefer_idle: bool
    ) -> PrefillSide:
        config = self._config
        rate = self._rate(worker)
        wait_s = worker.pending_tokens / rate
        compute_s = self._num_uncached(hit_blocks * self._request.block_size) / rate
        idle = worker.pending_tokens == 0 and worker.pending_requests == 0
        preference_s = config.remote_margin_s if idle and prefer_idle else 0.0
        own_cost_s = wait_s + compute_s + config.handshake_s - preference_s
        return PrefillSide(worker, compute_s, preference_s, own_cost_s)

    def remote(self, decode: DecodeSide, prefill: PrefillSide) -> Candidate:
        cost_s = decode.remote_cost_s(prefill) + decode.no_room_s
        return Candidate(
            decode.worker.member.worker_id,
            prefill.worker.member.worker_id,
            cost_s + prefill.preference_s,
            0.0,
            decode.decode_s,
            prefill.preference_s,
            cost_s + decode.decode_s,
        )

    def _rate(self, worker: WorkerView) -> float:
        return worker.load.prefill_tokens_per_s or self._typical_rate

    def _num_uncached(self, num_cached_tokens: int) -> int:
        # The last token is always computed: its logits choose the first output token.
        return max(1, self._request.num_prompt_tokens - num_cached_tokens)

    def _no_room_s(self, worker: WorkerView, hit_blocks: int) -> float:
        load = worker.load
        if load.total_blocks == 0:
            return 0.0
        needed = self._request.num_prompt_tokens // self._request.block_size + 1 - hit_blocks
        missing = needed - load.free_blocks
        return self._config.no_room_s * missing / needed if missing > 0 else 0.0
