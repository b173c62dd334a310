"""The twin of one engine: steps in which prompts' chunks and decodes share a budget of tokens.

Follows `engine.scheduler`: decodes take one token each, prompts take chunks of what is left in the
order of (priority, arrival); a prompt gets all of its KV when it enters the batch; a decode that
finds no room sends the last in the order back to the queue. Steps in which only decodes run are
taken many at a time, up to the next event, so that a token costs nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from functools import partial

from baton.protos.types import Member, WorkerLoad
from baton.router.times import WorkerTimes, num_pairs
from baton.simulator.cache import KvMemory
from baton.simulator.events import Events
from baton.simulator.gaps import GapHistogram
from baton.simulator.meter import Meter
from baton.simulator.runs import Run
from baton.simulator.sequence import Sequence
from baton.simulator.shape import Owner, WorkerShape


class SimWorker:
    """One worker of either role. Everything happens at `events.now`."""

    def __init__(
        self,
        member: Member,
        times: WorkerTimes,
        shape: WorkerShape,
        events: Events,
        owner: Owner,
        gaps: GapHistogram,
    ) -> None:
        self.member = member
        self.shape = shape
        self.memory = KvMemory(shape.kv_capacity_tokens, shape.block_tokens)
        self.meter = Meter()
        self.started_s = events.now
        self.draining = False
        self.dead = False
        # Requests owned that are in no engine queue here: their prompt is computed elsewhere.
        self.num_elsewhere = 0
        self.unplaced_tokens = 0
        # When this worker's side of the network is free again.
        self.wire_free_s = 0.0
        self.times = times
        self._events = events
        self._owner = owner
        self._gaps = gaps
        # By order, and for two attempts at one request by arrival.
        self._waiting: list[tuple[tuple[int, int], int, Sequence]] = []
        self._arrivals = itertools.count()
        self._prefilling: list[Sequence] = []
        self._ready: deque[Sequence] = deque()
        self._decoding: dict[int, Sequence] = {}
        self._by_finish: list[tuple[int, int, Sequence]] = []
        # How long decodes waited between their last token and the step that they are in.
        self._late_comers: list[float] = []
        self._kv_tokens = 0
        # Steps in which every decode got a token.
        self._steps = 0
        self._chunks: list[tuple[Sequence, int]] = []
        self._run: Run | None = None
        self._ending = False
        self.busy_s = 0.0

    # Commands.

    def add(self, sequence: Sequence) -> None:
        """Queues a prompt."""
        heapq.heappush(self._waiting, (sequence.order, next(self._arrivals), sequence))
        self._wake()

    def reserve(self, sequence: Sequence) -> bool:
        """Memory for a prompt that another worker computes; False when there is no room now."""
        self.sync()
        if not sequence.take(self.memory, len(self._decoding)):
            return False
        self._cut()
        return True

    def receive(self, sequence: Sequence) -> None:
        """A reserved prompt's KV is here: joins the decodes at the next step."""
        sequence.num_computed = sequence.num_tokens
        sequence.publish(self.memory)
        self._ready.append(sequence)
        self._wake()

    def release(self, sequence: Sequence) -> None:
        """Gives up a held or reserved sequence's memory."""
        sequence.free(self.memory)
        self._wake()
        self._owner.room(self)

    def kill(self) -> None:
        """It computes nothing more. What it decoded is written down in its sequences."""
        self.sync()
        self.dead = True
        self._run = None
        for sequence in self._decoding.values():
            self._settle(sequence)

    @property
    def idle(self) -> bool:
        """Nothing is here, not even memory that is held for somebody."""
        return not self.num_requests and self.memory.available_tokens == self.memory.capacity_tokens

    # What is known of it.

    @property
    def num_requests(self) -> int:
        """Requests in the engine or owned by it."""
        return (
            len(self._waiting)
            + len(self._prefilling)
            + len(self._ready)
            + len(self._decoding)
            + self.num_elsewhere
        )

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens that are still to be computed here."""
        chunks = sum(s.num_tokens - s.num_computed for s in self._prefilling)
        memory = self.memory
        waiting = sum(s.num_uncached(memory) for _, _, s in self._waiting)
        return waiting + chunks

    def load(self, *, num_waiting: int = 0, queued_tokens: int = 0) -> WorkerLoad:
        """As the worker would report it now, with what waits before its engine."""
        self.sync()
        block_tokens = self.shape.block_tokens
        num_decoding = len(self._decoding)
        unplaced = self.unplaced_tokens + sum(
            s.num_uncached(self.memory) for _, _, s in self._waiting
        )
        return WorkerLoad(
            unplaced_blocks=unplaced // block_tokens,
            num_running=num_decoding + len(self._prefilling),
            num_waiting=len(self._waiting) + len(self._ready) + self.num_elsewhere + num_waiting,
            queued_prefill_tokens=self.num_queued_tokens + queued_tokens,
            running_kv_tokens=self._kv_tokens,
            total_blocks=self.memory.capacity_tokens // block_tokens,
            free_blocks=max(0, self.memory.available_tokens) // block_tokens,
            prefill_tokens_per_s=self.meter.prefill_tokens_per_s,
            decode_step_s=self.meter.decode_step_s,
            draining=self.draining,
            itl_s=self.meter.itl_s,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless an idle worker holds nothing."""
        self.memory.check_integrity()
        if not self.num_requests:
            assert self.memory.own_tokens == 0, "an idle worker holds tokens"
            assert self._kv_tokens == 0, "an idle worker counts KV of decodes"

    def sync(self) -> None:
        """Takes in the steps of a long run that are over by now."""
        run = self._run
        if run is None or self._ending or self._chunks or run.num_steps <= 1:
            return
        done = min(run.steps_by(self._events.now - run.start_s), run.num_steps - 1)
        if done > 0:
            self._decoded(run, done)
            run.advance(done)

    # Steps.

    def _wake(self) -> None:
        if self.dead or self._ending:
            return
        if self._run is None:
            self._start()
        else:
            self._cut()

    def _cut(self) -> None:
        """Ends a run of decode steps with the step in flight: something else has come."""
        run = self._run
        if run is None or self._ending or self._chunks or run.num_steps == 1:
            return
        begun = min(run.steps_by(self._events.now - run.start_s) + 1, run.num_steps)
        if begun < run.num_steps:
            run.num_steps = begun
            self._schedule(run)

    def _start(self) -> None:
        self._join_ready()
        self._make_room()
        num_rows = len(self._decoding)
        chunks = self._share(self.times.prefill.chunk_tokens - num_rows)
        if not chunks and not num_rows:
            self._run = None
            return
        first_s = self._step_s(chunks)
        num_steps = 1
        if not chunks:
            until_finish = self._next_finish() - self._steps
            num_steps = min(until_finish, self.memory.available_tokens // num_rows)
        self._chunks = chunks
        growth_s = self.times.decode.per_kv_token_s * num_rows
        self._run = Run(self._events.now, max(1, num_steps), first_s, growth_s)
        self._schedule(self._run)

    def _step_s(self, chunks: list[tuple[Sequence, int]]) -> float:
        """The next step, of these chunks beside all decodes."""
        times, num_rows = self.times, len(self._decoding)
        if not chunks:
            return times.decode.predict(num_rows, self._kv_tokens)
        prefill = times.prefill
        num_tokens = sum(count for _, count in chunks)
        pairs = sum(num_pairs(count, sequence.num_computed) for sequence, count in chunks)
        return (
            prefill.fixed_s
            + num_tokens * prefill.per_token_s
            + pairs * prefill.per_pair_s
            + num_rows * prefill.per_row_s
            + self._kv_tokens * times.decode.per_kv_token_s
        )

    def _schedule(self, run: Run) -> None:
        # An event of a run that was cut short since finds another end, and does nothing.
        run.end_s = run.start_s + run.elapsed_s(run.num_steps)
        self._events.at(run.end_s, partial(self._end, run, run.end_s))

    def _end(self, run: Run, end_s: float) -> None:
        if self._run is not run or run.end_s != end_s:
            return
        # What owners do on the way must not begin a step before this one is wholly accounted for.
        self._ending = True
        chunks, self._chunks = self._chunks, []
        freed = False
        if self._decoding:
            self._decoded(run, run.num_steps, prefill=bool(chunks))
            freed = self._finish_decodes()
        else:
            self.busy_s += run.elapsed_s(run.num_steps)
        if chunks:
            num_tokens = sum(count for _, count in chunks)
            self.meter.prefilled(num_tokens, run.first_s)
            for sequence, count in chunks:
                freed |= self._computed(sequence, count)
        if freed:
            self._owner.room(self)
        self._ending = False
        self._run = None
        if not self.dead:
            self._start()

    def _decoded(self, run: Run, num_steps: int, *, prefill: bool = False) -> None:
        """`num_steps` of the run are over: every decode has as many tokens more."""
        num_rows = len(self._decoding)
        last_s = run.first_s + (num_steps - 1) * run.growth_s
        num_gaps = num_rows * num_steps - self._count_late_comers(run.first_s)
        self._gaps.add_ramp(run.first_s, last_s, num_gaps)
        self._steps += num_steps
        self._kv_tokens += num_rows * num_steps
        self.memory.grow(num_rows * num_steps)
        self.busy_s += run.elapsed_s(num_steps)
        self.meter.decoded((run.first_s + last_s) / 2, num_steps, prefill=prefill)

    def _count_late_comers(self, step_s: float) -> int:
        """What they waited since their last token is part of their first gap here."""
        for waited_s in self._late_comers:
            self._gaps.add(waited_s + step_s)
        count = len(self._late_comers)
        self._late_comers.clear()
        return count

    def _finish_decodes(self) -> bool:
        finished = False
        while self._by_finish and self._by_finish[0][0] <= self._steps:
            finish_step, _, sequence = heapq.heappop(self._by_finish)
            if self._decoding.get(id(sequence)) is sequence and sequence.finish_step == finish_step:
                self._leave_decodes(sequence)
                sequence.free(self.memory)
                finished = True
                self._owner.finished(self, sequence)
        return finished

    def _computed(self, sequence: Sequence, count: int) -> bool:
        """A chunk is done. Returns whether memory came free."""
        sequence.num_computed += count
        sequence.publish(self.memory)
        if sequence.hold:
            self._owner.computed(self, sequence)
        if sequence.num_computed < sequence.num_tokens:
            return False
        self._prefilling.remove(sequence)
        sequence.remaining -= 1
        self._tell_token(sequence)
        if sequence.hold:
            return False
        if sequence.remaining:
            self._enter_decodes(sequence)
            return False
        sequence.free(self.memory)
        self._owner.finished(self, sequence)
        return True

    def _tell_token(self, sequence: Sequence) -> None:
        now = self._events.now
        if sequence.last_token_s < 0:
            sequence.last_token_s = now
            self._owner.first_token(self, sequence)
        else:
            self._gap(sequence)

    def _gap(self, sequence: Sequence) -> None:
        """One token outside of the steps that all decodes share."""
        self._gaps.add(self._events.now - sequence.last_token_s)
        sequence.last_token_s = self._events.now

    # The batch.

    def _join_ready(self) -> None:
        while self._ready and self._has_slot:
            self._enter_decodes(self._ready.popleft())

    @property
    def _has_slot(self) -> bool:
        return len(self._decoding) + len(self._prefilling) < self.shape.max_running

    def _enter_decodes(self, sequence: Sequence) -> None:
        waited_s = self._events.now - sequence.last_token_s
        if waited_s > 0:
            self._late_comers.append(waited_s)
        sequence.start_step = self._steps
        sequence.finish_step = self._steps + sequence.remaining
        self._decoding[id(sequence)] = sequence
        self._kv_tokens += sequence.num_tokens
        entry = (sequence.finish_step, sequence.order[1], sequence)
        heapq.heappush(self._by_finish, entry)

    def _settle(self, sequence: Sequence) -> None:
        """Writes down what it decoded here."""
        count = self._steps - sequence.start_step
        sequence.num_tokens += count
        sequence.num_computed += count
        sequence.own_tokens += count
        sequence.remaining -= count
        sequence.last_token_s = self._events.now
        sequence.start_step = self._steps

    def _leave_decodes(self, sequence: Sequence) -> None:
        self._settle(sequence)
        del self._decoding[id(sequence)]
        self._kv_tokens -= sequence.num_tokens
        sequence.finish_step = -1

    def _next_finish(self) -> int:
        while True:
            finish_step, _, sequence = self._by_finish[0]
            if self._decoding.get(id(sequence)) is sequence and sequence.finish_step == finish_step:
                return finish_step
            heapq.heappop(self._by_finish)

    def _make_room(self) -> None:
        while self._decoding and self.memory.available_tokens < len(self._decoding):
            decodes = max(self._decoding.values(), key=lambda s: s.order)
            prompts = [s for s in self._prefilling if not s.hold]
            last = max([decodes, *prompts], key=lambda s: s.order)
            if last is decodes:
                self._leave_decodes(last)
            else:
                self._prefilling.remove(last)
            last.free(self.memory)
            heapq.heappush(self._waiting, (last.order, next(self._arrivals), last))

    def _share(self, budget: int) -> list[tuple[Sequence, int]]:
        chunks = []
        index = 0
        admitting = True
        while budget > 0:
            running = self._prefilling[index] if index < len(self._prefilling) else None
            head = self._waiting[0][2] if admitting and self._waiting else None
            if head is not None and (running is None or head.order < running.order):
                admitting = self._admit(head, index)
                continue
            if running is None:
                break
            count = min(running.num_tokens - running.num_computed, budget)
            chunks.append((running, count))
            budget -= count
            index += 1
        return chunks

    def _admit(self, sequence: Sequence, index: int) -> bool:
        if not self._has_slot or not sequence.take(self.memory, len(self._decoding)):
            return False
        heapq.heappop(self._waiting)
        self._prefilling.insert(index, sequence)
        return True
