"""Room that admission leaves for running requests, and what it does to preemptions."""

from collections.abc import Iterator

import pytest
from tests.engine.fakes import Builder, Collector, generate

from baton.engine.growth import ExpectedGrowth
from baton.engine.request import Request, RequestState


@pytest.fixture
def build() -> Iterator[Builder]:
    builder = Builder()
    yield builder
    builder.check()


def fleet(build: Builder, **config: object) -> Collector:
    """Eight requests of 8 tokens that write 16 more, in a pool with room for four and a half."""
    fake, collector = build.make(num_blocks=27, max_running=8, max_step_tokens=64, **config)
    for name in range(8):
        request = generate(str(name), [name + 1] * 8, max_tokens=16)
        fake.engine.add(request)
    collector.run()
    assert all(len(tokens) == 16 for tokens in collector.token_ids.values())
    return collector


def test_prompts_wait_for_room_for_the_outputs_of_those_that_run(build: Builder) -> None:
    assert fleet(build).num_preempted > 0
    assert fleet(build, expected_output_tokens=256).num_preempted == 0


def ended(max_tokens: int, num_tokens: int) -> Request:
    """A request of 4 prompt tokens that wrote so many, and has no block."""
    request = generate("r", [1] * 4, max_tokens, output_token_ids=[2] * num_tokens)
    return Request(request, arrival=0, state=RequestState.DECODING, now_s=0.0)


def test_the_mean_is_learned_from_outputs_that_were_not_cut_short() -> None:
    growth, running = ExpectedGrowth(4, 6), [ended(32, 0)]
    assert growth.blocks(running) == 2, "six tokens beside the four of the prompt"
    growth.finished(ended(3, 3))
    assert growth.blocks(running) == 2, "cut at 3 tokens: it might have been as long as any"
    for _ in range(200):
        growth.finished(ended(30, 30))
    assert growth.blocks(running) == 8, "cut, but later than expected"
    for _ in range(200):
        growth.finished(ended(30, 2))
    assert growth.blocks([ended(30, 10)]) == 1, "who has outgrown the mean may ask for a block"
    assert growth.headroom((), running[0]) == 0
