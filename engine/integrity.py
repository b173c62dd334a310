"""Proves that a scheduler has lost no request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from baton.engine.request import Request, RequestState
from baton.engine.running import RunningBatch
from baton.engine.tiers.seam import Tiers
from baton.engine.waiting import WaitingQueue
from baton.protos.errors import BatonError


def check_requests(
    requests: Mapping[str, Request],
    queue: WaitingQueue,
    ready: WaitingQueue,
    batch: RunningBatch,
    tiers: Tiers,
) -> None:
    """Raises BatonError unless every request is exactly where its state says."""
    batch.check_integrity()
    places: dict[RequestState, Iterator[Request]] = {
        RequestState.QUEUED: iter(queue),
        RequestState.READY: iter(ready),
        RequestState.PREFILLING: iter(batch.prefilling),
        RequestState.DECODING: iter(batch.decoding.values()),
        RequestState.FETCHING: iter(tiers.waiting),
        RequestState.LOADING: iter(tiers.waiting),
    }
    for state, members in places.items():
        kept = {request.request_id for request in members if request.state is state}
        known = {name for name, request in requests.items() if request.state is state}
        if kept != known:
            raise BatonError(f"{state.value} requests {known ^ kept} are known, or kept, only")
    if queue.num_tokens != sum(request.num_tokens for request in queue):
        raise BatonError("the queue's count of tokens is wrong")
