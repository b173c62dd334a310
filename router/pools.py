"""What every policy begins with: which workers may be planned for, and what they hold."""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.protos.errors import UnavailableError
from baton.router.config import RouterConfig
from baton.router.decision import RouteRequest
from baton.router.prefix_index import Prefixes
from baton.router.view import ClusterView, Column, Columns, Floats

Mask = npt.NDArray[np.bool_]

# Far below any price, far above what a float loses.
_NOISE_S: Final = 1e-9


class Pools:
    """The workers that may take a request. Raises UnavailableError where none can decode it.

    usable, usable_prefill: bool [num_workers] of the pools. stale: no decode worker's report can
    be believed, and `usable` are those that this gateway has sent the least. why_none: why there is
    no prefill worker, if so.
    """

    def __init__(self, view: ClusterView, request: RouteRequest, config: RouterConfig) -> None:
        self.decode, self.prefill = view.pools()
        self.view = ClusterView(
            view.decode,
            view.prefill,
            view.transfers,
            view.kv_bytes_per_token,
            view.handshake_s,
            (self.decode, self.prefill),
        )
        self.usable = usable_mask(self.decode, request)
        if not self.usable.any():
            raise nobody(self.decode, request)
        fresh = self.usable & (self.decode[Column.AGE_S] <= config.stale_after_s)
        self.stale = not fresh.any()
        if self.stale:
            sent = np.where(self.usable, self.decode[Column.IN_FLIGHT_REQUESTS], np.inf)
            self.usable = sent == sent.min()
        else:
            self.usable = fresh
        self.usable_prefill, self.why_none = self._prefill_mask(request, config)

    def reason(self, reason: str) -> str:
        return "stale_view" if self.stale else reason

    def named_blind(self, reason: str) -> str:
        """The reason, and that this gateway does not know what some worker holds, if so."""
        blind = (self.decode[Column.KV_BLIND] * self.usable).any() or (
            self.prefill[Column.KV_BLIND] * self.usable_prefill
        ).any()
        return f"{reason},kv_blind" if blind else reason

    def _prefill_mask(self, request: RouteRequest, config: RouterConfig) -> tuple[Mask, str]:
        if request.prompt_logprobs:
            # They are computed with the prompt, and only the decode worker reports them.
            return np.zeros(len(self.prefill), dtype=bool), "prompt_logprobs"
        usable = usable_mask(self.prefill, request)
        fresh = usable & (self.prefill[Column.AGE_S] <= config.stale_after_s)
        if fresh.any():
            return fresh, ""
        return fresh, "stale_prefill_view" if usable.any() else "no_prefill_worker"


def usable_mask(pool: Columns, request: RouteRequest) -> Mask:
    """bool [num_workers]: connected, not leaving, and not one that already failed this request."""
    mask: Mask = pool[Column.USABLE] > 0
    for worker_id in request.exclude:
        if worker_id in pool.rows:
            mask[pool.rows[worker_id]] = False
    return mask


def nobody(pool: Columns, request: RouteRequest) -> UnavailableError:
    """Counts why no decode worker can take this request."""
    num_draining = sum(worker.load.draining for worker in pool.workers)
    num_excluded = sum(worker.member.worker_id in request.exclude for worker in pool.workers)
    return UnavailableError(
        f"no decode worker can take request {request.request_id}: of {len(pool)} known, "
        f"{num_draining} are draining and {num_excluded} already failed it"
    )


def prefix_hits(
    index: Prefixes, request: RouteRequest, pools: tuple[Columns, Columns]
) -> tuple[Floats, Floats]:
    """Leading blocks of the prompt that each worker holds, for both pools."""
    # With prompt_logprobs every prompt token is computed again, whatever is cached.
    hashes = () if request.prompt_logprobs else request.block_hashes
    decode, prefill = index.blocks(hashes, pools)
    return decode, prefill


def tie_noise(rng: random.Random, count: int) -> Floats:
    """Different tiny seconds for every worker, so that the least of equals is a random one.

    A hash of the position and one draw (splitmix64, Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        mixed = np.arange(count, dtype=np.uint64) + np.uint64(rng.getrandbits(64))
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    noise: Floats = mixed.astype(np.float64) * (_NOISE_S / 2.0**64)
    return noise
