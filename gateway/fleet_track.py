"""What a fleet keeps of each request, and what the router is asked about it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from baton.gateway.fleet_generation import Generation
from baton.gateway.worker_link import WorkerLink
from baton.protos.errors import AdapterNotFoundError, BatonError, DeadlineError
from baton.protos.hashing import adapter_salt, block_hashes
from baton.protos.types import Member
from baton.router.decision import Chain, Plan, RouteRequest
from baton.router.prefix_index import PrefixIndex
from baton.router.view import ClusterView


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatistics:
    """Of `num_generations`, `num_waiting` wait for their turn and `num_parked` for any worker at
    all; the rest are totals since the start.
    """

    num_generations: int
    num_waiting: int
    num_parked: int
    num_submitted: int
    num_replayed: int
    num_links_lost: int


@dataclass(slots=True)
class Track:
    """What the fleet keeps of one generation between its attempts."""

    sequence: int
    # It served this session's last request.
    last_worker: str | None = None
    # Its prompt's hashes, by the size of the blocks.
    chains: dict[int, list[bytes]] = field(default_factory=dict)
    link: WorkerLink | None = None
    handle: int = 0
    prefill_links: list[WorkerLink] = field(default_factory=list)
    # Workers that failed it, by the incarnation that did.
    failed_by: dict[str, str] = field(default_factory=dict)
    last_error: BatonError | None = None
    # A worker that handed it back and serves its KV for a while.
    kv_at: Member | None = None
    deadline: asyncio.TimerHandle | None = None
    park_timer: asyncio.TimerHandle | None = None
    parked_s: float = 0.0

    def with_kv(self, chosen: Plan) -> Plan:
        """The plan, with the worker that has this request's KV as the first to be asked for it."""
        if self.kv_at is None:
            return chosen
        return replace(chosen, prefill=(self.kv_at, *chosen.prefill))

    def count_in_flight(self, generation: Generation, chosen: Plan, now_s: float) -> None:
        """Counts its prompt where it was sent, until that worker reports it."""
        num_new = chosen.num_new_tokens
        assert self.link is not None
        remote = bool(self.prefill_links)
        self.link.in_flight.add(id(generation), now_s, 0 if remote else num_new)
        for link in self.prefill_links:
            link.in_flight.add(id(generation), now_s, num_new)

    def promise(self, index: PrefixIndex, generation: Generation) -> None:
        """Its prompt will be where it was sent, in blocks of each worker's size."""
        by_size: dict[int, list[str]] = {}
        for link in (self.link, *self.prefill_links):
            if link is not None:
                by_size.setdefault(link.hello.block_size, []).append(link.member.worker_id)
        for size, worker_ids in by_size.items():
            index.promise(generation, worker_ids, self.chains.get(size, ()))

    def detach(self, generation: Generation) -> None:
        """Its attempt is over."""
        for link in (self.link, *self.prefill_links):
            if link is not None:
                link.in_flight.remove(id(generation))
        if self.link is not None:
            self.link.end_if_idle()
        self.link = None
        self.prefill_links = []


def worth_replaying(error: BatonError) -> bool:
    """Whether another worker may do what one refused or failed to do."""
    # A worker that could not load an adapter is not the only one.
    elsewhere = error.retryable or isinstance(error, AdapterNotFoundError)
    return elsewhere and not isinstance(error, DeadlineError)


def route_request(
    generation: Generation,
    track: Track,
    view: ClusterView,
    block_sizes: Sequence[int],
    *,
    hashed: bool,
) -> RouteRequest:
    """The request as the router sees it now. `block_sizes` are those that workers have, the decode
    workers' first; `hashed` says whether prefix hits can matter.

    Workers that failed it are excluded, as long as they are the same incarnation.
    """
    request = generation.request
    for size in block_sizes:
        if hashed and size not in track.chains:
            salt = adapter_salt(request.cache_salt, request.adapter_id)
            track.chains[size] = block_hashes(request.prompt_token_ids, size, salt=salt)
    excluded = frozenset(
        worker.member.worker_id
        for worker in view.decode
        if track.failed_by.get(worker.member.worker_id) == worker.member.incarnation
    )
    return RouteRequest(
        request_id=request.request_id,
        num_prompt_tokens=len(request.prompt_token_ids)
        + len(request.output_token_ids)
        + generation.num_received,
        block_hashes=track.chains.get(block_sizes[0], ()),
        block_size=block_sizes[0],
        other_chains=tuple(
            Chain(size, track.chains[size]) for size in block_sizes[1:] if size in track.chains
        ),
        max_tokens=request.sampling.max_tokens,
        prompt_logprobs=request.sampling.prompt_logprobs is not None,
        exclude=excluded,
        stick_to=generation.stick_to,
        last_worker=track.last_worker,
        adapter=request.adapter_id,
        sequence=track.sequence,
    )
