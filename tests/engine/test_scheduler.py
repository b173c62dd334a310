"""The scheduler's rules for steps, ends, refusals and the prefix cache, one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.fakes import Builder, answer, generate, kv_of, next_token

from baton.engine.request import Request, RequestState
from baton.protos.errors import (
    BatonError,
    ContextLengthError,
    InvalidRequestError,
    OverloadedError,
)
from baton.protos.types import FinishReason


@pytest.fixture
def build() -> Iterator[Builder]:
    """Builds engines, and proves at the end that each of them kept its books."""
    builder = Builder()
    yield builder
    builder.check()


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
        collector.check_answer(request, max_model_len=24)
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
        collector.check_answer(request)
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


def test_a_prompt_that_waits_counts_without_what_the_cache_has(build):
    fake, collector = build.make(max_running=1)
    fake.engine.add(generate("a", list(range(1, 17)), max_tokens=2))
    collector.run()
    fake.engine.add(generate("b", [30] * 4, max_tokens=9))
    collector.step()
    # Twenty tokens, of which sixteen are known: the last four need a block.
    fake.engine.add(generate("c", [*range(1, 17), 31, 32, 33, 34], max_tokens=2))
    load = fake.engine.load()
    assert load.queued_prefill_tokens == 4
    assert load.unplaced_blocks == 1
    collector.run()
    assert fake.engine.load().unplaced_blocks == 0


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


def test_a_state_change_outside_the_table_is_refused():
    request = Request(generate("a", [1]), arrival=1, state=RequestState.QUEUED, now_s=0.0)
    request.advance(RequestState.PREFILLING, "admitted", 1.5)
    assert (request.last.cause, request.last.at_s) == ("admitted", 1.5)
    with pytest.raises(BatonError, match="cannot go from prefilling to ready"):
        request.advance(RequestState.READY, "no", 2.0)


def test_the_fakes_tokens_depend_on_everything_before_them():
    assert next_token(kv_of([1, 2])[-1]) != next_token(kv_of([2, 2])[-1])
