"""Any commands in any order, tiny pools, right answers: the scheduler as a state machine."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.engine.fakes import Collector, answer, fill, generate, make_engine

from baton.engine.handover import Reservation
from baton.protos.errors import ContextLengthError, OverloadedError, StaleEpochError
from baton.protos.types import GenerateRequest

PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=14)


class SchedulerMachine(RuleBasedStateMachine):
    """Any commands in any order on a pool of a few blocks; every answer is known in advance."""

    overlap = False
    max_loras = 0

    def __init__(self) -> None:
        super().__init__()
        self.fake = make_engine(
            num_blocks=7,
            block_size=2,
            max_running=3,
            max_step_tokens=5,
            max_waiting=6,
            overlap=self.overlap,
            max_loras=self.max_loras,
        )
        self.engine = self.fake.engine
        self.collector = Collector(self.engine)
        self.max_model_len = self.engine.model.max_model_len
        self.count = 0
        self.running: dict[str, GenerateRequest] = {}
        self.held: dict[str, GenerateRequest] = {}
        self.reserved: dict[str, tuple[GenerateRequest, Reservation]] = {}
        self.first_tokens: dict[str, list[int]] = {}
        self.quarantined: list[str] = []
        self.router: set[bytes] = set()

    def _request(self, prompt: list[int], **extra: object) -> GenerateRequest:
        self.count += 1
        prompt = prompt[: self.max_model_len - 1]
        return generate(f"r{self.count}", prompt, ignore_eos=False, **extra)

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 8),
        priority=st.integers(0, 1),
        salt=st.sampled_from([b"", b"tenant"]),
        hold=st.booleans(),
    )
    def add(
        self, prompt: list[int], max_tokens: int, priority: int, salt: bytes, hold: bool
    ) -> None:
        request = self._request(prompt, max_tokens=max_tokens, priority=priority, cache_salt=salt)
        try:
            self.engine.add(request, hold=hold)
        except OverloadedError:
            assert self.engine.load().num_waiting >= 6
            return
        (self.held if hold else self.running)[request.request_id] = request

    @rule(prompt=PROMPTS, max_tokens=st.integers(1, 8), already=st.integers(0, 3))
    def replay(self, prompt: list[int], max_tokens: int, already: int) -> None:
        request = self._request(prompt[:8], max_tokens=max_tokens)
        made = answer(request, self.max_model_len).token_ids[:already]
        self._start_with(request, made)

    def _start_with(self, request: GenerateRequest, made: list[int]) -> None:
        again = generate(
            request.request_id,
            request.prompt_token_ids,
            max_tokens=request.sampling.max_tokens,
            ignore_eos=False,
            output_token_ids=made,
            adapter_id=request.adapter_id,
        )
        try:
            self.engine.add(again)
        except (OverloadedError, ContextLengthError):
            return
        self.first_tokens[request.request_id] = made
        self.running[request.request_id] = request

    @rule(prompt=PROMPTS, max_tokens=st.integers(1, 8))
    def reserve(self, prompt: list[int], max_tokens: int) -> None:
        request = self._request(prompt, max_tokens=max_tokens)
        reservation = self.engine.reserve(request)
        if reservation is not None:
            self.reserved[request.request_id] = (request, reservation)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), stale=st.booleans())
    def receive(self, data: st.DataObject, stale: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.reserved)))
        request, reservation = self.reserved[name]
        first = fill(self.fake, reservation, request)
        if stale:
            with pytest.raises(StaleEpochError):
                self.engine.receive(name, reservation.epoch - 1, first)
            return
        del self.reserved[name]
        self.engine.receive(name, reservation.epoch, first)
        if first.finish_reason is None:
            self.first_tokens[name] = first.token_ids
            self.running[name] = request

    @precondition(lambda self: self.running or self.held or self.reserved)
    @rule(data=st.data(), quarantine=st.booleans())
    def abort(self, data: st.DataObject, quarantine: bool) -> None:
        name = data.draw(st.sampled_from(sorted({**self.running, **self.held, **self.reserved})))
        known = self.engine.abort(name, quarantine=quarantine)
        assert known or name in self.collector.finish_reasons or name in self.first_tokens
        for owner in (self.running, self.held, self.reserved):
            owner.pop(name, None)
        if quarantine:
            self.quarantined.append(name)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_hold(self, data: st.DataObject) -> None:
        done = sorted(name for name in self.held if name in self.collector.token_ids)
        if done:
            self._release(data.draw(st.sampled_from(done)))

    def _release(self, name: str) -> None:
        request = self.held.pop(name)
        kept = answer(request, self.max_model_len)
        assert self.collector.token_ids[name] == kept.token_ids[:1]
        assert (name in self.collector.finish_reasons) == (len(kept.token_ids) == 1)
        self.engine.release(name)

    @precondition(lambda self: self.quarantined)
    @rule()
    def end_quarantine(self) -> None:
        self.engine.release(self.quarantined.pop())

    @precondition(lambda self: self.engine.has_work())
    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.has_work():
                self.collector.step()
        self._check_finished()

    def _check_finished(self) -> None:
        for name in [n for n in self.running if n in self.collector.finish_reasons]:
            request = self.running.pop(name)
            expected = answer(request, self.max_model_len)
            told = self.first_tokens.get(name, []) + self.collector.token_ids[name]
            assert told == expected.token_ids
            assert self.collector.finish_reasons[name] is expected.finish_reason

    @rule()
    def drain_events(self) -> None:
        events = self.engine.drain_kv_events()
        self.router = (self.router - set(events.removed)) | set(events.stored)
        assert self.router == set(self.engine.snapshot_kv().stored)

    @invariant()
    def books_are_kept(self) -> None:
        self.engine.check_integrity()

    def teardown(self) -> None:
        """Whatever was done: once peers let go, all that is left finishes and nothing leaks."""
        for name in list(self.reserved):
            assert self.engine.abort(name)
        while self.quarantined:
            self.engine.release(self.quarantined.pop())
        for _ in range(50):
            self.collector.run()
            for name in [n for n in self.held if n in self.collector.token_ids]:
                self._release(name)
        self._check_finished()
        assert not self.running
        assert not self.held
        assert not self.engine.has_work()
        self.engine.check_integrity()
        load = self.engine.load()
        assert load.free_blocks == load.total_blocks
        assert load.num_running == load.num_waiting == 0
        assert self.fake.runner.rows == {}


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


class OverlapMachine(SchedulerMachine):
    """The same with the next step launched before the last is read."""

    overlap = True


TestOverlapMachine = OverlapMachine.TestCase
TestOverlapMachine.settings = TestSchedulerMachine.settings
