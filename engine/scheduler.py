"""Decides what each step computes: the one scheduler for prompts, decodes, replays and handovers.

Every request is "n tokens computed of m known". A step is a budget of tokens that is shared out:
each decoding request takes one, then prompts take chunks in the order of (priority, arrival),
several to a step if they fit. A prompt gets all of its blocks when it enters the batch, so only a
decode can find the pool empty; then the request that is last in the order gives its blocks back
and returns to the queue with its output kept, to be computed again (much of it, as a rule, still
in the prefix cache). Requests whose blocks another worker reads or writes are never preempted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baton.engine.arrivals import Arrivals
from baton.engine.batch import RunResult, ScheduledRow
from baton.engine.block_pool import BlockPool
from baton.engine.config import EngineConfig
from baton.engine.gates import Gates
from baton.engine.growth import ExpectedGrowth
from baton.engine.handover import Quarantine, Reservation
from baton.engine.integrity import check_requests
from baton.engine.prompt_shares import share_prefills
from baton.engine.request import TERMINAL, Request, RequestState
from baton.engine.request_blocks import RequestBlocks
from baton.engine.rules import RequestRules
from baton.engine.running import BatchRows, RunningBatch
from baton.engine.scheduler_statistics import SchedulerStatistics
from baton.engine.tiers.seam import Tiers
from baton.engine.waiting import WaitingQueue
from baton.protos.clock import Clock
from baton.protos.errors import BatonError, StaleEpochError
from baton.protos.types import (
    FinishReason,
    GenerateRequest,
    RequestOutput,
    StepOutput,
)


class Scheduler:
    """The requests of one engine. One writer: the engine's thread."""

    def __init__(
        self,
        config: EngineConfig,
        rules: RequestRules,
        pool: BlockPool,
        rows: BatchRows,
        clock: Clock,
        gates: Gates,
        tiers: Tiers,
    ) -> None:
        self._max_step_tokens = config.max_step_tokens
        self._rules = rules
        self._clock = clock
        self._gates = gates
        self._tiers = tiers
        self._pool = pool
        self._blocks = RequestBlocks(pool, config.block_size, prefix_cache=config.prefix_cache)
        self._growth = ExpectedGrowth(config.block_size, config.expected_output_tokens)
        self._batch = RunningBatch(config.max_running, rows, gates.adapters)
        self._requests: dict[str, Request] = {}
        self._queue = WaitingQueue()
        self._ready = WaitingQueue()
        self._quarantine = Quarantine()
        # Ended without a step: reported by the next one.
        self._ended: list[RequestOutput] = []
        self._arrivals = Arrivals(rules, gates, clock)
        self._num_preemptions = 0
        self._num_preemptions_told = 0
        # Ended while a step that was launched still writes into their blocks, by epoch.
        self._leaving: dict[int, Request] = {}
        # The queue's head lacks blocks until a command frees some: an idle loop must not spin.
        self._stalled = False

    # The life of a request, as commands.

    def add(self, request: GenerateRequest, *, hold: bool = False) -> None:
        """Queues it; see Engine.add for what is refused."""
        if hold:
            self._quarantine.check_free(request.request_id)
        new = self._new(request, RequestState.QUEUED)
        new.hold = hold
        if self._end_if_complete(new, "replayed output is complete"):
            return
        if new in self._gates.grammars:
            self._advance(new, RequestState.COMPILING, "its grammar is compiled")
        else:
            self._enqueue(new)

    def reserve(self, request: GenerateRequest) -> Reservation | None:
        """Blocks for all its known tokens, or None (and nothing kept) when there is no room now."""
        new = self._new(request, RequestState.TRANSFERRING)
        if not self._blocks.take(new, self._growth.headroom(self._batch, new)):
            self._gates.leave(new)
            del self._requests[new.request_id]
            return None
        return Reservation.of(new)

    def receive(self, request_id: str, epoch: int, first: RequestOutput) -> None:
        """Its KV is complete: publishes it, and lets the request join the batch after `first`."""
        request = self._requests.get(request_id)
        if (
            request is None
            or request.state is not RequestState.TRANSFERRING
            or request.epoch != epoch
        ):
            raise StaleEpochError(f"request {request_id}: its reservation {epoch} is over")
        request.take_first(first)
        self._blocks.publish(request, request.num_computed_tokens)
        if first.finish_reason is not None:
            self._end(request, RequestState.FINISHED, "ended by its first token")
        elif self._end_if_complete(request, "no room to decode here"):
            return
        elif request in self._gates.grammars:
            self._advance(request, RequestState.COMPILING, "received before its grammar")
        else:
            self._make_ready(request, "received")

    def abort(self, request_id: str, *, quarantine: bool = False) -> bool:
        """Ends it in any state; see Engine.abort. No step that holds it may be under way."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._leave(request)
        request.num_launched = 0
        if quarantine and request.block_ids:
            self._quarantine.add(request_id, request.epoch, request.block_ids)
            request.block_ids = []
        self._end(request, RequestState.CANCELLED, "aborted")
        return True

    def release(self, request_id: str, *, epoch: int | None = None) -> None:
        """Ends quarantines of that id if there are any, otherwise its hold."""
        self._stalled = False
        if request_id in self._quarantine:
            for block_ids in self._quarantine.take(request_id, epoch):
                self._pool.release(block_ids)
            return
        request = self._requests.get(request_id)
        if request is not None and request.state is RequestState.PREFILLED:
            self._end(request, RequestState.FINISHED, "released")

    # A step: schedule, (the runner launches it,) launched, (the runner waits for it,) commit.

    def has_work(self) -> bool:
        """Whether the next step would do something."""
        # What is ready has its blocks: it waits for slots only, which an empty batch has.
        is_done = self._gates.has_work or self._tiers.has_done
        if self._ended or self._batch or self._ready or is_done:
            return True
        return bool(self._queue) and not self._stalled

    def may_run_ahead(self) -> bool:
        """Whether the next step can be scheduled before the one under way is committed.

        Not when it would have to preempt: the blocks and tokens to give up are still in use.
        """
        self._join_ready()
        decoding = self._batch.decoding.values()
        needy = self._blocks.without_room(decoding)
        return sum(map(self._blocks.num_missing, needy)) <= self._pool.num_available

    def schedule(self) -> list[ScheduledRow]:
        """What to compute now. Requests enter and leave the batch here."""
        before = self._num_preemptions
        self._join_let_in()
        self._join_ready()
        self._join_from_tiers()
        self._grow_decodes()
        rows = self._batch.decode_rows(self._max_step_tokens)
        budget = self._max_step_tokens - sum(row.num_new_tokens for row in rows)
        # What a preemption freed is for the decodes that needed it, not for the next prompt.
        admitting = self._num_preemptions == before
        admit = self._admit if admitting else None
        rows += share_prefills(self._batch.prefilling, self._queue, budget, admit)
        self._stalled = not rows and admitting
        self._gates.adapters.fetch()
        return rows

    def launched(self, rows: Sequence[ScheduledRow]) -> None:
        """The rows are under way: the next step may be scheduled on what they will have done."""
        for row in rows:
            request = row.request
            request.num_computed_tokens += row.num_new_tokens
            request.num_launched += 1
            if row.samples:
                request.num_pending += 1
                if not (row.decodes or request.hold):
                    self._batch.start_decode(request)
                    self._advance(request, RequestState.DECODING, "prompt computed")

    def commit(self, rows: Sequence[ScheduledRow], result: RunResult) -> StepOutput:
        """Takes in what the runner computed for `rows`, in their order."""
        preempted, self._num_preemptions_told = self._num_preemptions_told, self._num_preemptions
        output = StepOutput(outputs=self._ended, num_preempted=self._num_preemptions - preempted)
        self._ended = []
        self._stalled = self._stalled and not rows
        sampled = zip(result.sampled, result.logprobs, strict=True)
        for row in rows:
            request = row.request
            if row.decodes:
                output.num_decode_tokens += 1
            else:
                output.num_prefill_tokens += row.num_new_tokens
            token = next(sampled, None) if row.samples else None
            if row.samples and token is None:
                raise BatonError(f"only {len(result.sampled)} tokens sampled for more rows")
            if request.state in TERMINAL:
                # It ended after this step was launched: what the step did for it is dropped.
                if self._leaving.pop(request.epoch, None) is not None:
                    self._blocks.free(request)
                continue
            request.num_launched -= 1
            self._blocks.publish(request, row.end)
            if request.hold:
                output.progress.append(row.progress)
            if not request.prompt_logprobs_done:
                request.prompt_logprobs += result.prompt_logprobs.get(request.request_id, ())
            if token is not None and request.num_redundant:
                request.num_redundant -= 1
            elif token is not None:
                request.num_pending -= 1
                output.outputs.append(self._rules.accept(request, *token))
                self._settle(request, output.outputs[-1].finish_reason)
        if next(sampled, None) is not None:
            raise BatonError(f"{len(result.sampled)} tokens sampled, more than rows that sample")
        self._tiers.advance()
        return output

    def _settle(self, request: Request, reason: FinishReason | None) -> None:
        """Its last token was accepted: whether it stays."""
        if request.hold:
            self._leave(request)
            self._advance(request, RequestState.PREFILLED, "prompt computed")
        elif reason is not None:
            self._growth.finished(request)
            self._leave(request)
            self._end(request, RequestState.FINISHED, reason.value)

    # Inspection.

    @property
    def num_queued(self) -> int:
        return len(self._queue) + self._tiers.num_fetching + len(self._gates.adapters)

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics.of(
            self._requests.values(),
            num_preemptions=self._num_preemptions,
            num_uncached=self._blocks.num_uncached,
        )

    def check_integrity(self, moving: Iterable[Sequence[int]]) -> None:
        """Proves that no request, slot or block is lost, where others hold the blocks `moving`;
        raises BatonError that says what is."""
        check_requests(self._requests, self._queue, self._ready, self._batch, self._tiers)
        holders = [*self._requests.values(), *self._leaving.values()]
        owners = [request.block_ids for request in holders]
        self._pool.check_integrity([*owners, *self._quarantine, *self._tiers.orphans, *moving])
        self._tiers.check_integrity()
        self._gates.adapters.check_integrity(self._requests.values())

    # The parts of schedule().

    def _join_let_in(self) -> None:
        """Those whose grammar was compiled go on, or end with why not; or whose adapter came."""
        for request in self._gates.adapters.take_ready():
            has_kv = bool(request.block_ids)
            to = RequestState.READY if has_kv else RequestState.QUEUED
            self._advance(request, to, "its adapter came")
            (self._ready if has_kv else self._queue).add(request)
        for request, error in self._gates.grammars.take_done():
            if error is not None:
                self._end(request, RequestState.FINISHED, "its grammar was refused")
                self._ended.append(self._rules.refused(request, error))
            elif request.num_computed_tokens:
                self._make_ready(request, "its grammar is compiled")
            else:
                self._advance(request, RequestState.QUEUED, "its grammar is compiled")
                self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        """A new request waits for its turn, or first for blocks that lower tiers may have."""
        if self._tiers.fetch(request):
            self._advance(request, RequestState.FETCHING, "lower tiers are asked")
        else:
            self._queue.add(request)

    def _join_from_tiers(self) -> None:
        """Those whose blocks came, or did not come in time, go on."""
        if self._tiers.take_in():
            self._stalled = False
        for fetched in self._tiers.take_fetched():
            self._advance(fetched, RequestState.QUEUED, "lower tiers were asked")
            self._queue.add(fetched)
        while self._batch.num_slots and (loaded := self._tiers.first_loaded) is not None:
            self._blocks.loaded(loaded, self._tiers.take_loaded(loaded))
            self._batch.enter_prefill(loaded)
            self._advance(loaded, RequestState.PREFILLING, "loaded")

    def _make_ready(self, request: Request, cause: str) -> None:
        """Its KV is here, and so is its grammar."""
        self._rules.jump(request)
        if not self._end_if_complete(request, cause):
            self._advance(request, RequestState.READY, cause)
            self._ready.add(request)

    def _join_ready(self) -> None:
        while self._batch.num_slots and (request := self._ready.first) is not None:
            self._ready.remove(request)
            if not self._is_cold(request):
                self._batch.enter_decode(request)
                self._advance(request, RequestState.DECODING, "joined")

    def _is_cold(self, request: Request) -> bool:
        """Whether it now waits for its adapter."""
        cold = not self._gates.adapters.may_join(request)
        if cold:
            self._advance(request, RequestState.COLD, "its adapter is not on the device")
        return cold

    def _grow_decodes(self) -> None:
        """Gives every decode the blocks that its tokens need, the first in order first."""
        needy = self._blocks.without_room(self._batch.decoding.values())
        needy.sort(key=lambda request: request.order)
        for request in needy:
            # It may have given way itself, to an earlier one or as the last of all.
            while request.slot >= 0 and self._blocks.num_missing(request) > 0:
                if not self._blocks.grow(request):
                    self._preempt(self._batch.last_in_order() or request)

    def _preempt(self, request: Request) -> None:
        self._batch.leave(request)
        self._blocks.free(request)
        if request.needs_prompt_logprobs:
            request.prompt_logprobs = [None]
        request.num_preemptions += 1
        self._num_preemptions += 1
        self._advance(request, RequestState.QUEUED, "preempted: no KV block is free")
        self._queue.add(request)

    def _admit(self, request: Request) -> bool:
        """Moves the queue's head into the batch, or to be loaded, if there is a slot and room."""
        headroom = self._growth.headroom(self._batch, request)
        has_slot = self._batch.num_slots > self._tiers.num_loading
        is_cold = has_slot and self._is_cold(request)
        if not has_slot or not (is_cold or self._blocks.take(request, headroom)):
            return False
        self._queue.remove(request)
        if is_cold:
            return True
        self._gates.adapters.pin(request)
        if self._tiers.load(request):
            self._advance(request, RequestState.LOADING, "its blocks are loaded")
            return True
        self._batch.enter_prefill(request)
        self._advance(request, RequestState.PREFILLING, "admitted")
        return True

    # What each of the others leans on.

    def _new(self, request: GenerateRequest, state: RequestState) -> Request:
        new = self._arrivals.make(request, state, self._requests)
        self._requests[new.request_id] = new
        self._stalled = False
        return new

    def _leave(self, request: Request) -> None:
        """Takes it out of the queue or the batch that it is in."""
        if request.slot >= 0:
            self._batch.leave(request)
        elif request.state is RequestState.QUEUED:
            self._queue.remove(request)
        elif request.state is RequestState.READY:
            self._ready.remove(request)
        elif request.state in (RequestState.FETCHING, RequestState.LOADING):
            self._tiers.drop(request)

    def _end_if_complete(self, request: Request, cause: str) -> bool:
        output = self._rules.complete(request)
        if output is None:
            return False
        self._end(request, RequestState.FINISHED, cause)
        self._ended.append(output)
        return True

    def _end(self, request: Request, state: RequestState, cause: str) -> None:
        self._advance(request, state, cause)
        self._gates.leave(request)
        if request.num_launched:
            self._leaving[request.epoch] = request
        else:
            self._blocks.free(request)
        self._stalled = False
        del self._requests[request.request_id]

    def _advance(self, request: Request, to: RequestState, cause: str) -> None:
        request.advance(to, cause, self._clock.now_s())
