"""Prompts that one simulated worker computes for another."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from baton.simulator.job import Job
from baton.simulator.sequence import Sequence
from baton.simulator.worker import SimWorker

if TYPE_CHECKING:
    from baton.simulator.simulation import Simulation


class Handover:
    """The twin of `decode_worker.remote` and `handover.sender`.

    A prefill worker that starts a prompt asks for memory and computes meanwhile, pushes each
    chunk's KV while the next one computes, and sends the first token itself as soon as it knows
    where its KV goes; the decode worker goes on when all KV is there. A prompt that gets no memory
    for `reserve_timeout_s` goes to the next prefill worker.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._events = simulation.events
        self._config = simulation.config
        # By decode worker: those that it has no memory for, oldest first.
        self._unreserved: dict[SimWorker, list[tuple[Job, Sequence]]] = {}

    def ask(self, job: Job, worker: SimWorker, attempt: int) -> None:
        """The job has come to a prefill worker, which first fetches what another has cached."""
        if worker.dead:
            return
        prefix, num_bytes = self._lent(job, worker)
        if not prefix or job.lender is None:
            self._queue(job, worker, attempt, prefix)
            return
        there_s = self._over_wire(job.lender, worker, num_bytes) + self._config.times.handshake_s
        self._events.at(there_s, partial(self._queue, job, worker, attempt, prefix))

    def _lent(self, job: Job, prefill: SimWorker) -> tuple[tuple[bytes, ...], float]:
        """The longer prefix that another worker has cached, and its bytes; or nothing."""
        lender, memory = job.lender, prefill.memory
        if lender is None or lender.dead:
            return (), 0
        findable = job.request.block_hashes[: (job.num_known - 1) // memory.block_tokens]
        prefix = findable[: lender.memory.match(findable)]
        num_new = (len(prefix) - memory.match(prefix)) * memory.block_tokens
        return (prefix, num_new * self._config.times.kv_bytes_per_token) if num_new else ((), 0)

    def _queue(self, job: Job, worker: SimWorker, attempt: int, prefix: tuple[bytes, ...]) -> None:
        if worker.dead:
            return
        worker.memory.bring(prefix)
        self._simulation.fleet.desks[worker.member.worker_id].add(job, attempt)

    def start(self, job: Job) -> None:
        """Its turn has come."""
        decode, prefill = job.decode, job.prefill
        assert decode is not None
        assert prefill is not None
        held = job.held = self._simulation.sequence(job, hold=True)
        prefill.add(held)
        self._unreserved.setdefault(decode, []).append((job, held))
        late_s = self._events.now + self._config.reserve_timeout_s
        self._events.at(late_s, partial(self._late, job, held))
        self.room(decode)

    def room(self, decode: SimWorker) -> None:
        """Memory has come free: those who asked for it try again, oldest first."""
        waiting = self._unreserved.pop(decode, None)
        if not waiting:
            return
        left = [entry for entry in waiting if not self._reserve(*entry)]
        if left:
            self._unreserved[decode] = left + self._unreserved.get(decode, [])

    def _reserve(self, job: Job, held: Sequence) -> bool:
        """False to try again later."""
        decode, prefill = job.decode, job.prefill
        if job.held is not held or decode is None or prefill is None or prefill.dead:
            return True
        sequence = self._simulation.sequence(job)
        if not decode.reserve(sequence):
            del self._simulation.by_sequence[id(sequence)]
            return False
        self._simulation.placed(job)
        job.sequence = sequence
        job.num_pushed = sequence.num_cached
        self._push(job, prefill, decode)
        if held.computed:
            self._send_first(job, prefill, held)
        return True

    def _late(self, job: Job, held: Sequence) -> None:
        prefill = job.prefill
        if job.held is not held or job.sequence is not None or prefill is None or prefill.dead:
            return
        self.give_up(job)
        self._simulation.fleet.desks[prefill.member.worker_id].done(job)
        self._simulation.next_attempt(job)

    def give_up(self, job: Job) -> None:
        """Nobody waits for what its prefill worker has computed; what it still computes it drops
        itself, at its end."""
        held, prefill = job.held, job.prefill
        job.held = None
        if held is not None and held.computed and prefill is not None and not prefill.dead:
            self._drop(prefill, held)

    def _over_wire(self, sender: SimWorker, receiver: SimWorker, num_bytes: float) -> float:
        """When it is there: both ends of the wire carry one push at a time."""
        start_s = max(self._events.now, sender.wire_free_s, receiver.wire_free_s)
        end_s = start_s + self._config.times.transfer.predict(num_bytes)
        sender.wire_free_s = receiver.wire_free_s = end_s
        return end_s

    def computed(self, prefill: SimWorker, held: Sequence) -> None:
        """Pushes what is new."""
        job = self._simulation.by_sequence[id(held)]
        if job.held is held and job.sequence is not None and job.decode is not None:
            self._push(job, prefill, job.decode)

    def _push(self, job: Job, prefill: SimWorker, decode: SimWorker) -> None:
        assert job.held is not None
        num_new = job.held.num_computed - job.num_pushed
        if num_new <= 0:
            job.delivered_s = max(job.delivered_s, self._events.now)
            return
        job.num_pushed = job.held.num_computed
        num_bytes = num_new * self._config.times.kv_bytes_per_token
        job.delivered_s = self._over_wire(prefill, decode, num_bytes)

    def sampled(self, prefill: SimWorker, held: Sequence) -> None:
        """The first token is there; it goes out when it is known where its KV goes."""
        job = self._simulation.by_sequence[id(held)]
        if job.held is not held:
            self._drop(prefill, held)
        elif job.sequence is not None:
            self._send_first(job, prefill, held)

    def _send_first(self, job: Job, prefill: SimWorker, held: Sequence) -> None:
        self._simulation.tell_first(job, held)
        self._simulation.fleet.desks[prefill.member.worker_id].done(job)
        self._events.at(job.delivered_s, partial(self._delivered, job, prefill, held))

    def _delivered(self, job: Job, prefill: SimWorker, held: Sequence) -> None:
        if not prefill.dead:
            self._drop(prefill, held)
        decode, sequence = job.decode, job.sequence
        if decode is None or sequence is None or job.held is not held:
            return
        job.held = job.prefill = None
        decode.num_elsewhere -= 1
        sequence.remaining = job.num_left
        sequence.last_token_s = job.last_s
        if job.num_left:
            decode.receive(sequence)
        else:
            decode.release(sequence)
            self._simulation.finish(job, sequence)

    def _drop(self, prefill: SimWorker, held: Sequence) -> None:
        if self._simulation.by_sequence.pop(id(held), None) is not None:
            prefill.release(held)
