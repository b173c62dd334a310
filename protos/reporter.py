"""What a worker tells all gateways: its load and its prefix cache's changes, in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable
from typing import Protocol

from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.types import KvEvents, StepOutput, WorkerLoad


class ReportingEngine(Protocol):
    """The part of an engine that is reported; its methods run on the engine's thread."""

    def drain_kv_events(self) -> KvEvents: ...
    def snapshot_kv(self) -> KvEvents: ...
    def load(self) -> WorkerLoad: ...
    def report(self) -> WorkerLoad: ...


class Queue(Protocol):
    """What a worker holds besides its engine."""

    def add_queue(self, load: WorkerLoad) -> WorkerLoad: ...


# Submissions that come together are one report.
SOON_S = 0.002
# A client waits for a step's tokens and nobody for its report: it goes along with the tokens of the
# next step, or so much later.
STEP_REPORT_S = 0.005
# The event loop and the engine's next step are Python both: a first token that has to fight for the
# interpreter is late by more than the step is when it waits. So long at most.
FIRST_TOKENS_S = 0.001

# Runs a command on the engine's thread, between steps.
CallEngine = Callable[[Callable[[ReportingEngine], None]], "concurrent.futures.Future[None]"]
# What the engine has to say, and how many prompt tokens it had taken then.
Report = Callable[[KvEvents, WorkerLoad, int], None]


class Reporter:
    """Takes figures on the engine's thread and broadcasts them on the event loop.

    Every hop goes through the same loop in order, so a gateway's snapshot fits between two batches.
    """

    def __init__(
        self, events: asyncio.AbstractEventLoop, call: CallEngine, queue: Queue, hub: FeedHub
    ) -> None:
        self._events = events
        self._call = call
        self._queue = queue
        self._hub = hub
        self._last = WorkerLoad()
        self._soon: asyncio.TimerHandle | None = None
        # Prompt tokens, since the start: given to the engine; taken by it, which its thread counts;
        # taken when it made its last report.
        self._given_tokens = 0
        self._taken_tokens = 0
        self._reported_tokens = 0

    def soon(self) -> None:
        """Reports within milliseconds that requests have come. Other gateways must know before
        they send theirs: they see of each other only what workers say. A lone gateway knows.
        """
        if self._soon is None and len(self._hub.feeds) > 1:
            self._soon = self._events.call_later(SOON_S, self._report_soon)

    def given(self, num_tokens: int) -> None:
        """So many prompt tokens are on their way to the engine: reports count them from now on."""
        self._given_tokens += num_tokens
        self.soon()

    def taken(self, num_tokens: int) -> None:
        """On the engine's thread: it has them, or refuses them; its own reports say which."""
        self._taken_tokens += num_tokens

    def after_step(
        self,
        engine: ReportingEngine,
        step: StepOutput,
        dispatch: Callable[[StepOutput], None],
    ) -> None:
        """On the engine's thread: its tokens are on their way while the report is made, and where
        they may be first ones, before the report and the next step take the interpreter.
        """
        sent = threading.Event()
        self._events.call_soon_threadsafe(self._dispatch, step, dispatch, sent)
        if step.num_prefill_tokens and step.outputs:
            sent.wait(FIRST_TOKENS_S)
        changes, load = engine.drain_kv_events(), engine.report()
        self._post(self._report_step, changes, load)

    async def join(self, feed: GatewayFeed) -> None:
        """Adds a gateway, whose stream begins with a snapshot of the prefix cache."""

        def snapshot(engine: ReportingEngine) -> None:
            changes, everything, load = (
                engine.drain_kv_events(),
                engine.snapshot_kv(),
                engine.load(),
            )
            self._events.call_soon_threadsafe(self._admit, feed, changes, everything, load)

        await asyncio.wrap_future(self._call(snapshot))

    async def run(self, interval_s: float, on_tick: Callable[[], None]) -> None:
        """Reports every `interval_s` seconds, idle or not, so that a silent worker shows."""

        def report(engine: ReportingEngine) -> None:
            changes, load = engine.drain_kv_events(), engine.report()
            self._post(self._broadcast, changes, load)

        while True:
            await asyncio.sleep(interval_s)
            await asyncio.wrap_future(self._call(report))
            on_tick()

    async def load(self) -> WorkerLoad:
        """The load as the next report will tell it."""
        found: list[WorkerLoad] = []
        await asyncio.wrap_future(self._call(lambda engine: found.append(engine.load())))
        return self._queue.add_queue(found[0])

    def _dispatch(
        self, step: StepOutput, dispatch: Callable[[StepOutput], None], sent: threading.Event
    ) -> None:
        dispatch(step)
        # The streams, which this has woken, write in the loop's next turn, and sockets get it at
        # that turn's end.
        self._events.call_soon(self._events.call_soon, sent.set)

    def _post(self, report: Report, changes: KvEvents, load: WorkerLoad) -> None:
        """On the engine's thread."""
        self._events.call_soon_threadsafe(report, changes, load, self._taken_tokens)

    def _report_step(self, changes: KvEvents, load: WorkerLoad, taken_tokens: int) -> None:
        self._broadcast(changes, load, taken_tokens, within_s=STEP_REPORT_S)

    def _broadcast(
        self, changes: KvEvents, load: WorkerLoad, taken_tokens: int, within_s: float = 0.0
    ) -> None:
        # Samples are told once.
        self._last = dataclasses.replace(load, steps=(), transfers=())
        self._reported_tokens = taken_tokens
        self._hub.broadcast(self._full(load), changes, within_s=within_s)

    def _report_soon(self) -> None:
        self._soon = None
        self._hub.broadcast(self._full(self._last), KvEvents())

    def _full(self, load: WorkerLoad) -> WorkerLoad:
        load = self._queue.add_queue(load)
        hidden = self._given_tokens - self._reported_tokens
        if not hidden:
            return load
        return dataclasses.replace(load, queued_prefill_tokens=load.queued_prefill_tokens + hidden)

    def _admit(
        self, feed: GatewayFeed, changes: KvEvents, everything: KvEvents, load: WorkerLoad
    ) -> None:
        self._hub.broadcast(None, changes)
        self._hub.join(feed, everything)
        feed.load(self._queue.add_queue(load))


def with_queue(
    load: WorkerLoad, *, num_waiting: int, queued_prefill_tokens: int, draining: bool
) -> WorkerLoad:
    """An engine's load with what its worker holds."""
    return dataclasses.replace(
        load,
        num_waiting=num_waiting,
        queued_prefill_tokens=queued_prefill_tokens,
        draining=draining,
    )
