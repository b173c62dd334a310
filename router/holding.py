"""Late binding: is a plan worth acting on now, or should its request wait for a better one?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baton.protos.types import Member
from baton.router.decision import Plan, RouteRequest
from baton.router.view import ClusterView, WorkerView


def start_wait_s(view: ClusterView, plan: Plan, request: RouteRequest) -> float:
    """Seconds until the planned worker would begin to compute this prompt.

    `math.inf` where the decode worker has no KV blocks left for it while others hold them: it
    would begin only when one of those ends, and by then another worker may be the better one.
    """
    decode = _find(view.decode, plan.decode)
    if decode is None:
        return 0.0
    load = decode.load
    needed = request.num_prompt_tokens // request.block_size + 1
    needed -= plan.num_cached_tokens // request.block_size
    if load.total_blocks and needed > load.free_blocks and decode.pending_requests:
        return math.inf
    first = _find(view.prefill, plan.prefill[0]) if plan.prefill else decode
    return 0.0 if first is None else _wait_s(first)


def _wait_s(worker: WorkerView) -> float:
    return worker.times.prefill.predict(worker.pending_tokens)


def _find(workers: Sequence[WorkerView], member: Member) -> WorkerView | None:
    return next((w for w in workers if w.member.worker_id == member.worker_id), None)
