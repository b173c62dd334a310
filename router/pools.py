"""What every policy begins with: which workers may be planned for, and what they hold."""

from __future__ import annotations

import functools
import random
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.protos.errors import UnavailableError
from baton.router.config import RouterConfig
from baton.router.decision import RouteRequest
from baton.router.prefix_index import Prefixes
from baton.router.promises import Held
from baton.router.view import ClusterView, Column, Columns, Floats

Mask = npt.NDArray[np.bool_]

# Far below any price, far above what a float loses.
_NOISE_S: Final = 1e-9
_NOISE_TABLE: Final = 1 << 14


class Pools:
    """The workers that may take a request. Raises UnavailableError where none can decode it.

    usable, usable_prefill: bool [num_workers] of the pools. stale: no decode worker's report can
    be believed, and `usable` are those that this gateway has sent the least. why_none: why there is
    no prefill worker, if so.
    """

    def __init__(self, view: ClusterView, request: RouteRequest, config: RouterConfig) -> None:
        self.decode, self.prefill = view.pools()
        self.view = view
        self.usable, self.stale = _decode_mask(self.decode, request, config)
        self.usable_prefill, self.why_none = _prefill_mask(self.prefill, request, config)
        self._adapter = request.adapter

    def reason(self, reason: str) -> str:
        return "stale_view" if self.stale else reason

    def named_blind(self, reason: str) -> str:
        """The reason, and that this gateway does not know what some worker holds, if so."""
        pools = ((self.decode, self.usable), (self.prefill, self.usable_prefill))
        blind = any(
            pool.num_blind and bool((pool[Column.KV_BLIND] * mask).any()) for pool, mask in pools
        )
        return f"{reason},kv_blind" if blind else reason

    def named_cold(self, reason: str, row: int) -> str:
        """The reason, and that this decode worker has to load the adapter first, if so."""
        if not self._adapter or self._adapter in self.decode.workers[row].adapters:
            return reason
        return f"{reason},adapter_cold"


def _all_good(pool: Columns, request: RouteRequest, config: RouterConfig) -> bool:
    """No worker is to be left out; what is usual is quickly told."""
    return (
        bool(pool.workers)
        and not pool.num_unusable
        and not request.exclude
        and pool.oldest_s <= config.stale_after_s
    )


def _decode_mask(pool: Columns, request: RouteRequest, config: RouterConfig) -> tuple[Mask, bool]:
    """Who may be planned for, and whether no report can be believed."""
    if _all_good(pool, request, config):
        return pool.everybody, False
    usable = usable_mask(pool, request)
    if not usable.any():
        raise nobody(pool, request)
    fresh = usable & (pool[Column.AGE_S] <= config.stale_after_s)
    if fresh.any():
        return fresh, False
    sent = np.where(usable, pool[Column.IN_FLIGHT_REQUESTS], np.inf)
    return sent == sent.min(), True


def _prefill_mask(pool: Columns, request: RouteRequest, config: RouterConfig) -> tuple[Mask, str]:
    """Who may be planned for, or nobody and why."""
    if request.prompt_logprobs:
        # They are computed with the prompt, and only the decode worker reports them.
        return np.zeros(len(pool), dtype=bool), "prompt_logprobs"
    if _all_good(pool, request, config):
        return pool.everybody, ""
    usable = usable_mask(pool, request)
    fresh = usable & (pool[Column.AGE_S] <= config.stale_after_s)
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
) -> list[Held]:
    """Who holds how many leading tokens of the prompt."""
    # With prompt_logprobs every prompt token is computed again, whatever is cached.
    return index.held(() if request.prompt_logprobs else request.chains, pools)


def tie_noise(rng: random.Random, count: int) -> Floats:
    """Different tiny seconds for every worker, so that the least of equals is a random one."""
    table = _noise_table(max(2 * count, _NOISE_TABLE))
    start = rng.randrange(len(table) - count + 1)
    return table[start : start + count]


@functools.lru_cache(maxsize=4)
def _noise_table(size: int) -> Floats:
    """The same for ever. Draws take a part of it: drawing anew costs more than all else here."""
    table: Floats = np.random.default_rng(0).random(size) * _NOISE_S
    table.setflags(write=False)
    return table
