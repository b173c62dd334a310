"""Where a scheduler's requests are, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from baton.engine.request import Request, RequestState

_WAITS_FOR_BATCH: Final = (
    RequestState.FETCHING,
    RequestState.QUEUED,
    RequestState.COLD,
    RequestState.LOADING,
)
_HAS_NO_BLOCKS: Final = (RequestState.FETCHING, RequestState.QUEUED, RequestState.COLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """Requests by where they are. `num_waiting`: those without a slot that want one.

    queued_prefill_tokens: known tokens still to be computed before their requests decode, less what
    the prefix cache has of those that wait.
    unplaced_tokens: of those that wait, which will need blocks of their own.
    running_kv_tokens: computed tokens of the requests in the batch.
    """

    num_running: int
    num_waiting: int
    num_reserved: int
    num_held: int
    num_preemptions: int
    queued_prefill_tokens: int
    unplaced_tokens: int
    running_kv_tokens: int

    @classmethod
    def of(
        cls,
        requests: Collection[Request],
        *,
        num_preemptions: int,
        num_uncached: Callable[[Request], int],
    ) -> SchedulerStatistics:
        """Counts the requests that a scheduler knows. num_uncached: tokens of a waiting one that
        the prefix cache does not have."""
        states = Counter(request.state for request in requests)
        unplaced = sum(
            num_uncached(request) for request in requests if request.state in _HAS_NO_BLOCKS
        )
        prefilling = sum(
            request.num_uncomputed_tokens
            for request in requests
            if request.state in (RequestState.LOADING, RequestState.PREFILLING)
        )
        return cls(
            num_running=states[RequestState.PREFILLING] + states[RequestState.DECODING],
            num_waiting=sum(states[state] for state in _WAITS_FOR_BATCH)
            + states[RequestState.READY],
            num_reserved=states[RequestState.TRANSFERRING],
            num_held=states[RequestState.PREFILLED],
            num_preemptions=num_preemptions,
            queued_prefill_tokens=unplaced + prefilling,
            unplaced_tokens=unplaced,
            running_kv_tokens=sum(
                request.num_computed_tokens for request in requests if request.slot >= 0
            ),
        )
