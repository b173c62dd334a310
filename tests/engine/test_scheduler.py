"""The scheduler's rules one by one, then all at once: any commands, tiny pools, right answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.engine.fakes import (
    Collector,
    FakeEngine,
    answer,
    generate,
    kv_of,
    make_engine,
    next_token,
)

from baton.engine.handover import Reservation
from baton.engine.request import Request, RequestState
from baton.protos.errors import (
    BatonError,
    ContextLengthError,
    InvalidRequestError,
    OverloadedError,
    StaleEpochError,
)
from baton.protos.types import FinishReason, GenerateRequest, RequestOutput


@pytest.fixture
def build() -> Iterator[type[Builder]]:
    """Builds engines, and proves at the end that each of them kept its books."""
    Builder.built = []
    yield Builder
    for fake in Builder.built:
        fake.engine.check_integrity()


class Builder:
    built: list[FakeEngine]

    @classmethod
    def make(cls, **config: object) -> tuple[FakeEngine, Collector]:
        fake = make_engine(**config)
        cls.built.append(fake)
        return fake, Collector(fake.engine)


def assert_answer(collector: Collector, request: GenerateRequest, max_model_len: int = 64) -> None:
    expected = answer(request, max_model_len)
    assert collector.token_ids[request.request_id] == expected.token_ids
    assert collector.finish_reasons[request.request_id] is expected.finish_reason


def fill(fake: FakeEngine, reservation: Reservation, request: GenerateRequest) -> RequestOutput:
    """What a prefill worker does: writes the KV that is missing, and samples the first token."""
    known = [*request.prompt_token_ids, *request.output_token_ids]
    kv = kv_of(known, request.cache_salt)
    for position in range(reservation.num_cached_tokens, len(known)):
        fake.runner.pool.write(reservation.block_ids, position, kv[position])
    expected = answer(request, fake.engine.model.max_model_len)
    return RequestOutput(
        request_id=request.request_id,
        token_ids=expected.token_ids[:1],
        finish_reason=expected.finish_reason if len(expected.token_ids) == 1 else None,
    )


# What a step is made of.


def test_decodes_go_first_and_prompts_share_what_is_left(build):
    fake, collector = build.make(max_step_tokens=8)
    fake.engine.add(generate("a", [1] * 3, max_tokens=9))
    collector.step()
    fake.engine.add(generate("b", [2] * 5))
    fake.engine.add(generate("c", [3] * 9))
    collector.step()
    collector.step()
    assert fake.runner.batches == [
        [("a", 3)],
        [("a", 1), ("b", 5), ("c", 2)],
        [("a", 1), ("b", 1), ("c", 6)],
    ]
    collector.run()


def test_prompts_go_by_priority_then_arrival_even_past_one_that_has_begun(build):
    fake, collector = build.make(max_step_tokens=5, max_running=3)
    fake.engine.add(generate("late", [1] * 9, priority=5))
    collector.step()
    fake.engine.add(generate("first", [2] * 4, priority=1))
    fake.engine.add(generate("second", [3] * 4, priority=1))
    collector.step()
    assert fake.runner.batches[1] == [("first", 4), ("second", 1)]
    collector.run()
    assert len(collector.finish_reasons) == 3


def test_a_full_batch_keeps_the_others_waiting(build):
    fake, collector = build.make(max_running=2)
    for name in "abc":
        fake.engine.add(generate(name, [1, 2], max_tokens=2))
    collector.step()
    assert fake.engine.load().num_running == 2
    assert fake.engine.load().num_waiting == 1
    assert fake.engine.load().queued_prefill_tokens == 2
    collector.run()
    assert set(collector.finish_reasons) == {"a", "b", "c"}


def test_a_pool_that_is_too_small_preempts_the_last_and_no_token_is_lost(build):
    fake, collector = build.make(num_blocks=6, max_running=3)
    requests = [generate(name, [i + 1] * 5, max_tokens=14) for i, name in enumerate("abc")]
    for request in requests:
        fake.engine.add(request)
    collector.run()
    assert collector.num_preempted > 0
    assert fake.engine.statistics().requests.num_preemptions == collector.num_preempted
    for request in requests:
        assert_answer(collector, request, max_model_len=24)
    assert next(iter(collector.finish_reasons)) == "a"


# What ends a request, and what is refused.


@pytest.mark.parametrize("extra", [{"ignore_eos": False}, {}])
def test_eos_stop_ids_and_max_tokens_end_a_request(build, extra):
    prompts = [[n, n + 1, n + 2] for n in range(30)]
    fake, collector = build.make(max_running=7)
    requests = [
        generate(f"{n}", prompt, max_tokens=30, stop_token_ids=(5, 9), **extra)
        for n, prompt in enumerate(prompts)
    ]
    for request in requests:
        fake.engine.add(request)
    collector.run()
    for request in requests:
        assert_answer(collector, request)
    reasons = set(collector.finish_reasons.values())
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


def test_the_context_ends_a_request(build):
    fake, collector = build.make(max_model_len=10)
    fake.engine.add(generate("a", [1] * 7, max_tokens=100))
    collector.run()
    assert len(collector.token_ids["a"]) == 3
    assert collector.finish_reasons["a"] is FinishReason.LENGTH


def test_the_pool_bounds_the_context_so_that_every_request_fits(build):
    fake, collector = build.make(num_blocks=3)
    assert fake.engine.model.max_model_len == 12
    with pytest.raises(ContextLengthError, match=r"12 tokens, which leaves no room.* 12 tokens"):
        fake.engine.add(generate("a", [1] * 12))
    fake.engine.add(generate("b", [1] * 11, max_tokens=50))
    collector.run()
    assert collector.finish_reasons["b"] is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (generate("", [1]), "request_id is empty"),
        (generate("a", []), "no tokens"),
        (generate("a", [1, 40]), "token id 40, but the model's ids are 0 to 39"),
        (generate("a", [-3]), "token id -3"),
        (generate("a", [1], output_token_ids=[99]), "output_token_ids holds token id 99"),
        (generate("a", [1], top_p=0.0), "top_p"),
    ],
)
def test_bad_requests_are_refused_by_name(build, request_, message):
    fake, _ = build.make()
    with pytest.raises(InvalidRequestError, match=message):
        fake.engine.add(request_)
    with pytest.raises(InvalidRequestError, match=message):
        fake.engine.reserve(request_)
    assert not fake.engine.has_work()


def test_an_id_cannot_be_here_twice_and_the_queue_is_bounded(build):
    fake, collector = build.make(max_waiting=2)
    fake.engine.add(generate("a", [1]))
    with pytest.raises(InvalidRequestError, match="already here"):
        fake.engine.add(generate("a", [1]))
    fake.engine.add(generate("b", [1]))
    with pytest.raises(OverloadedError, match="2 requests are waiting") as refused:
        fake.engine.add(generate("c", [1]))
    assert refused.value.retry_after_s > 0
    collector.run()
    fake.engine.add(generate("a", [1]))
    collector.finish_reasons.clear()
    collector.run()


def test_a_replay_goes_on_where_it_was_and_counts_its_tokens(build):
    whole = generate("a", [1, 2, 3], max_tokens=8)
    expected = answer(whole, 64)
    for already in range(1, 9):
        fake, collector = build.make()
        fake.engine.add(
            generate("a", [1, 2, 3], max_tokens=8, output_token_ids=expected.token_ids[:already])
        )
        collector.run()
        assert collector.token_ids["a"] == expected.token_ids[already:]
        assert collector.finish_reasons["a"] is FinishReason.LENGTH


# The prefix cache.


def test_a_known_prefix_is_not_computed_again(build):
    fake, collector = build.make()
    request = generate("a", range(1, 13), max_tokens=5)
    fake.engine.add(request)
    collector.run()
    fake.runner.batches.clear()
    fake.engine.add(generate("b", range(1, 13), max_tokens=5))
    output = fake.engine.step()
    assert output.outputs[0].num_cached_tokens == 8, "the last block is computed, for its logits"
    assert output.num_prefill_tokens == 4
    collector.run()
    turn = [*range(1, 13), *answer(request, 64).token_ids[:4], 7]
    fake.engine.add(generate("c", turn, max_tokens=1))
    assert fake.engine.step().outputs[0].num_cached_tokens == 16, "answers are cached too"


def test_a_salt_separates_and_prompt_logprobs_do_not_read(build):
    fake, collector = build.make()
    for name, extra, cached in [
        ("a", {}, 0),
        ("b", {"cache_salt": b"tenant"}, 0),
        ("c", {"prompt_logprobs": 0}, 0),
        ("d", {"cache_salt": b"tenant"}, 4),
        ("e", {}, 4),
    ]:
        fake.engine.add(generate(name, [1, 2, 3, 4, 5], max_tokens=1, **extra))
        (output,) = fake.engine.step().outputs
        assert output.num_cached_tokens == cached, name
    assert not fake.engine.has_work()
    assert collector.token_ids == {}


def test_prompt_logprobs_come_once_and_whole_with_the_first_token(build):
    fake, _ = build.make(max_step_tokens=5)
    prompt = list(range(1, 14))
    fake.engine.add(generate("a", prompt, max_tokens=3, prompt_logprobs=1, logprobs=0))
    told = []
    while fake.engine.has_work():
        told += fake.engine.step().outputs
    assert [one.logprobs is not None for one in told] == [True] * 3
    first = told[0].prompt_logprobs
    assert first[0] is None
    assert [logprob.token_id for logprob in first[1:]] == prompt[1:]
    assert [one.prompt_logprobs for one in told[1:]] == [None, None]


def test_a_request_preempted_in_its_prompt_still_reports_all_prompt_logprobs(build):
    fake, collector = build.make(num_blocks=8, max_running=2, max_step_tokens=3)
    fake.engine.add(generate("a", [1] * 7, max_tokens=24))
    for _ in range(3):
        collector.step()
    fake.engine.add(generate("b", [2] * 18, max_tokens=2, prompt_logprobs=0, priority=1))
    seen = []
    while fake.engine.has_work():
        output = fake.engine.step()
        collector.num_preempted += output.num_preempted
        seen += [len(o.prompt_logprobs) for o in output.outputs if o.prompt_logprobs is not None]
    assert collector.num_preempted > 0
    assert seen == [18]


def test_blocks_are_found_only_when_their_tokens_are_computed(build):
    fake, collector = build.make(max_step_tokens=6)
    fake.engine.add(generate("a", range(1, 12), max_tokens=4))
    counts = []
    while fake.engine.has_work():
        collector.step()
        counts.append(len(fake.engine.snapshot_kv().stored))
    assert counts == [1, 2, 3, 3, 3], "6, 11, 12, 13 and 14 tokens, 4 to a block"


def test_events_tell_what_a_router_needs(build):
    fake, collector = build.make(num_blocks=6, max_running=3)
    known: set[bytes] = set()
    for n in range(8):
        fake.engine.add(generate(f"{n}", [n + 1] * 9, max_tokens=4))
        collector.run()
        events = fake.engine.drain_kv_events()
        known = (known - set(events.removed)) | set(events.stored)
        snapshot = fake.engine.snapshot_kv()
        assert snapshot.cleared
        assert known == set(snapshot.stored)
    assert fake.engine.statistics().blocks.num_evictions > 0


# Handovers.


def test_a_hold_computes_the_prompt_and_keeps_its_blocks(build):
    fake, collector = build.make(max_step_tokens=5)
    request = generate("a", [1] * 11, max_tokens=5)
    fake.engine.add(request, hold=True)
    collector.run()
    assert collector.progress["a"] == [5, 10, 11]
    assert collector.token_ids["a"] == answer(request, 64).token_ids[:1]
    assert collector.finish_reasons == {}, "it is the request that is not over"
    assert fake.engine.load().free_blocks == 13
    assert fake.engine.statistics().requests.num_held == 1
    fake.engine.release("a")
    assert fake.engine.load().free_blocks == 16
    fake.engine.release("a")


def test_a_hold_says_so_if_its_token_ends_the_request(build):
    fake, collector = build.make()
    fake.engine.add(generate("a", [1] * 3, max_tokens=1), hold=True)
    collector.run()
    assert collector.finish_reasons["a"] is FinishReason.LENGTH
    fake.engine.release("a")


def test_a_held_prompt_is_never_preempted(build):
    fake, collector = build.make(num_blocks=8, max_running=2, max_step_tokens=3)
    decode = generate("a", [1] * 7, max_tokens=24)
    fake.engine.add(decode)
    for _ in range(3):
        collector.step()
    fake.engine.add(generate("b", [2] * 18), hold=True)
    collector.run()
    assert collector.num_preempted == 1, "the decode gave way, though it came first"
    assert collector.progress["b"][-1] == 18
    assert not fake.engine.has_work(), "the decode waits for blocks without spinning"
    fake.engine.release("b")
    assert fake.engine.has_work()
    collector.run()
    assert_answer(collector, decode, max_model_len=32)


def test_a_reservation_is_filled_and_decodes_on(build):
    fake, collector = build.make()
    request = generate("a", [1] * 9, max_tokens=6)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    assert len(reservation.block_ids) == 3
    assert not fake.engine.has_work()
    fake.engine.receive("a", reservation.epoch, fill(fake, reservation, request))
    collector.run()
    assert collector.token_ids["a"] == answer(request, 64).token_ids[1:]
    again = fake.engine.reserve(generate("b", [1] * 9))
    assert again is not None
    assert again.num_cached_tokens == 8
    assert again.block_ids[:2] == reservation.block_ids[:2]
    assert again.epoch > reservation.epoch
    assert fake.engine.abort("b")


def test_a_handover_whose_first_token_ends_it_runs_nothing(build):
    fake, _ = build.make()
    request = generate("a", [1] * 9, max_tokens=1)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    fake.engine.receive("a", reservation.epoch, fill(fake, reservation, request))
    assert not fake.engine.has_work()
    assert fake.engine.load().free_blocks == 16
    assert not fake.engine.abort("a")


def test_a_handover_that_fills_the_context_ends_with_an_empty_output(build):
    fake, collector = build.make(num_blocks=3)
    request = generate("a", [1] * 11, max_tokens=9)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    first = fill(fake, reservation, request)
    first.finish_reason = None
    fake.engine.receive("a", reservation.epoch, first)
    collector.run()
    assert collector.token_ids["a"] == []
    assert collector.finish_reasons["a"] is FinishReason.LENGTH


def test_stale_receives_are_refused(build):
    fake, _ = build.make()
    request = generate("a", [1] * 5)
    old = fake.engine.reserve(request)
    assert old is not None
    fake.engine.abort("a")
    new = fake.engine.reserve(request)
    assert new is not None
    first = fill(fake, new, request)
    with pytest.raises(StaleEpochError, match=f"reservation {old.epoch} is over"):
        fake.engine.receive("a", old.epoch, first)
    fake.engine.receive("a", new.epoch, first)
    with pytest.raises(StaleEpochError):
        fake.engine.receive("a", new.epoch, first)
    with pytest.raises(StaleEpochError):
        fake.engine.receive("unknown", 1, first)
    fake.engine.abort("a")


def test_received_requests_wait_for_a_slot_with_their_blocks(build):
    fake, collector = build.make(max_running=1)
    requests = [generate(name, [i + 1] * 6, max_tokens=4) for i, name in enumerate("abc")]
    for request in requests:
        reservation = fake.engine.reserve(request)
        assert reservation is not None
        fake.engine.receive(request.request_id, reservation.epoch, fill(fake, reservation, request))
    collector.step()
    assert fake.engine.load().num_running == 1
    assert fake.engine.load().num_waiting == 2
    collector.run()
    for request in requests:
        assert collector.token_ids[request.request_id] == answer(request, 64).token_ids[1:]


def test_a_received_request_runs_though_the_queue_is_stuck_for_blocks(build):
    fake, collector = build.make(num_blocks=4)
    request = generate("a", [1] * 9, max_tokens=2)
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    fake.engine.add(generate("stuck", [2] * 9, max_tokens=1))
    collector.step()
    assert not fake.engine.has_work()
    fake.engine.receive("a", reservation.epoch, fill(fake, reservation, request))
    assert fake.engine.has_work()
    collector.run()
    assert set(collector.finish_reasons) == {"a", "stuck"}


def test_a_reservation_without_room_is_none_and_keeps_nothing(build):
    fake, collector = build.make(num_blocks=4)
    fake.engine.add(generate("a", [1] * 5, max_tokens=6))
    collector.step()
    assert fake.engine.reserve(generate("b", [2] * 9)) is None, "the decode may need the last one"
    reservation = fake.engine.reserve(generate("b", [2] * 4))
    assert reservation is not None
    fake.engine.abort("b")
    collector.run()


def test_quarantined_blocks_stay_out_of_use_until_their_own_release(build):
    fake, collector = build.make(num_blocks=8)
    request = generate("a", [1] * 9)
    epochs = []
    for _ in range(2):
        reservation = fake.engine.reserve(request)
        assert reservation is not None
        epochs.append(reservation.epoch)
        assert fake.engine.abort("a", quarantine=True)
    assert fake.engine.load().free_blocks == 2
    with pytest.raises(OverloadedError, match="still being sent"):
        fake.engine.add(request, hold=True)
    fake.engine.add(request)
    collector.step()
    assert not fake.engine.has_work(), "2 blocks are not enough, and nothing else can run"
    fake.engine.release("a", epoch=999)
    assert not fake.engine.has_work() or fake.engine.load().free_blocks == 2
    fake.engine.release("a", epoch=epochs[0])
    assert fake.engine.load().free_blocks == 5
    collector.run()
    fake.engine.release("a")
    assert fake.engine.load().free_blocks == 8
    assert_answer(collector, request, max_model_len=32)


def test_abort_ends_any_state_without_an_output(build):
    fake, collector = build.make(max_running=1)
    fake.engine.add(generate("decoding", [1, 2]))
    fake.engine.add(generate("queued", [1, 2]))
    assert fake.engine.reserve(generate("reserved", [3, 4])) is not None
    request = generate("ready", [5, 6])
    reservation = fake.engine.reserve(request)
    assert reservation is not None
    collector.step()
    fake.engine.receive("ready", reservation.epoch, fill(fake, reservation, request))
    for name in ("decoding", "queued", "reserved", "ready"):
        assert fake.engine.abort(name), name
        fake.engine.check_integrity()
        assert not fake.engine.abort(name)
    assert not fake.engine.has_work()
    assert fake.engine.load().free_blocks == 16
    assert fake.runner.rows == {}


def test_a_state_change_outside_the_table_is_refused():
    request = Request(generate("a", [1]), arrival=1, state=RequestState.QUEUED, now_s=0.0)
    request.advance(RequestState.PREFILLING, "admitted", 1.5)
    assert (request.last.cause, request.last.at_s) == ("admitted", 1.5)
    with pytest.raises(BatonError, match="cannot go from prefilling to ready"):
        request.advance(RequestState.READY, "no", 2.0)


# Everything at once.

PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=14)


class SchedulerMachine(RuleBasedStateMachine):
    """Any commands in any order on a pool of a few blocks; every answer is known in advance."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = make_engine(
            num_blocks=7, block_size=2, max_running=3, max_step_tokens=5, max_waiting=6
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


def test_the_fakes_tokens_depend_on_everything_before_them():
    assert next_token(kv_of([1, 2])[-1]) != next_token(kv_of([2, 2])[-1])
