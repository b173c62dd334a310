"""What a worker tells all gateways, and how soon."""

from __future__ import annotations

import asyncio
import concurrent.futures

from baton.protos import worker_pb2 as pb
from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.reporter import Reporter
from baton.protos.types import KvEvents, StepOutput, StepSample, WorkerLoad


class Engine:
    """Reports what it is told to."""

    def __init__(self, load: WorkerLoad) -> None:
        self._load = load

    def drain_kv_events(self) -> KvEvents:
        return KvEvents()

    def snapshot_kv(self) -> KvEvents:
        return KvEvents(cleared=True)

    def load(self) -> WorkerLoad:
        return self._load

    def report(self) -> WorkerLoad:
        return self._load


class Queue:
    def add_queue(self, load: WorkerLoad) -> WorkerLoad:
        return load


async def test_a_prompt_is_reported_before_its_engine_has_taken_it_and_counted_once() -> None:
    hub = FeedHub()
    feeds = [GatewayFeed(pb.WorkerHello()) for _ in range(2)]
    for feed in feeds:
        hub.join(feed, KvEvents(cleared=True))
    loop = asyncio.get_running_loop()

    def call(_command: object) -> concurrent.futures.Future[None]:
        raise AssertionError("nothing is asked of the engine")

    reporter = Reporter(loop, call, Queue(), hub)
    messages = [feed.messages() for feed in feeds]

    async def queued() -> list[int]:
        found = []
        for stream in messages:
            message = await anext(stream)
            while not message.HasField("load"):
                message = await anext(stream)
            found.append(message.load.queued_prefill_tokens)
        return found

    reporter.given(100)
    assert await queued() == [100, 100]
    # The step that was running ends: its report cannot know of the prompt yet.
    sample = StepSample(num_new_tokens=1, num_pairs=1, num_rows=0, kv_tokens=0, seconds=0.1)
    busy = WorkerLoad(queued_prefill_tokens=7, steps=(sample,))
    reporter.after_step(Engine(busy), StepOutput(), lambda step: None)
    assert await queued() == [107, 107]
    # Taken, but not reported by the engine yet; samples are not told again.
    reporter.taken(100)
    reporter.soon()
    first, second = [await anext(stream) for stream in messages]
    assert first.load.queued_prefill_tokens == second.load.queued_prefill_tokens == 107
    assert not first.load.steps
    reporter.after_step(
        Engine(WorkerLoad(queued_prefill_tokens=90)), StepOutput(), lambda step: None
    )
    assert await queued() == [90, 90]
