"""Computes prompts for other workers and pushes their KV there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from baton.engine.engine import Engine
from baton.handover.host import WorkerHost
from baton.handover.jobs import Job, JobState, JobTable
from baton.handover.lender import PrefixLender
from baton.handover.pulls import PrefixPulls
from baton.handover.push_meter import PushMeter
from baton.handover.trace import log_job, trace_job
from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.session import PushSpan, SendSession
from baton.protos import worker_pb2 as pb
from baton.protos.clock import Clock
from baton.protos.convert import generate_from_proto, logprob_to_proto
from baton.protos.errors import (
    BatonError,
    DeadlineError,
    OverloadedError,
    PeerLostError,
    TransferError,
    UnavailableError,
    WorkerLostError,
)
from baton.protos.types import PrefillProgress, RequestOutput, StepOutput, WorkerLoad

Reply = Callable[[pb.PrefillMessage], None]


class Stream(NamedTuple):
    """A connected decode worker: what its blocks are like, and its stream, which None ends."""

    layout: KVLayout
    send: Callable[[pb.PrefillMessage | None], None]


class PromptSender:
    """All prompts that one worker computes for others. Belongs to one event loop."""

    def __init__(self, host: WorkerHost, clock: Clock) -> None:
        self._host = host
        self._config = host.config
        self._clock = clock
        self._jobs = JobTable()
        self._streams: dict[PeerKey, Stream] = {}
        self._push_meter = PushMeter()
        self.pulls = PrefixPulls(host)
        self.lender = PrefixLender(host, self._push_meter, clock)
        self._draining = False

    def __len__(self) -> int:
        """Prompts that are waiting, running or being sent, and prefixes that come for them."""
        return len(self._jobs) + len(self.pulls)

    def refuse_new(self) -> None:
        """From now on no prompt is taken; those that were go on."""
        self._draining = True

    def fail_all(self, error: BatonError) -> None:
        """Ends every prompt: its decode worker hears why, and computes it or asks another."""
        for job in self._jobs:
            self._fail(job, error)

    async def greet(self, peer: PeerInfo, send: Callable[[pb.PrefillMessage | None], None]) -> None:
        """Connects the KV wire to a decode worker; None ends its stream when that wire is lost.

        Raises LayoutMismatchError, PeerLostError. `lose` must follow, whatever happens.
        """
        self._streams[peer.key] = Stream(peer.layout, send)
        await asyncio.to_thread(self._host.connector.connect, peer)
        self.pulls.connected(peer.key, send)

    def take(self, owner: PeerKey, message: pb.DecodeMessage, reply: Reply) -> None:
        """Queues the message's prompt, or refuses it."""
        request = generate_from_proto(message.prefill)
        error = self._refusal()
        if error is not None:
            reply(failed(request.request_id, error))
            return
        layout = self._streams[owner].layout
        job = Job(
            request=request,
            owner=owner,
            reply=reply,
            session=SendSession(
                request.request_id,
                num_tokens=len(request.prompt_token_ids) + len(request.output_token_ids),
                block_size=self._config.engine.block_size,
                target_block_size=layout.block_size,
            ),
            target_block_bytes=layout.token_bytes * layout.block_size,
            queued_s=self._clock.now_s(),
            traceparent=message.traceparent,
            of_request=message.of_request,
            source=source_of(message),
        )
        self._jobs.add(job)
        if job.source:
            self.pulls.fetch(request, job.source, partial(self._pulled, job))
        else:
            self._pulled(job, 0)
        self._host.reporter.soon()

    def _pulled(self, job: Job, num_tokens: int) -> None:
        """Nothing more of it comes from another worker: it waits for its turn."""
        if job.state is JobState.PULLING:
            job.num_pulled_tokens = num_tokens
            self._jobs.enqueue(job)
            self.start_waiting()

    def reserved(self, message: pb.Reservation) -> None:
        """A decode worker says where to write, or that it no longer wants this prompt."""
        job = self._jobs.get(message.request_id)
        if job is None or job.state is JobState.CANCELLED:
            return
        if job.reserve_timer is not None:
            job.reserve_timer.cancel()
        if not message.granted:
            self._cancel(job)
            return
        try:
            first_block = message.num_cached_tokens // self._streams[job.owner].layout.block_size
            job.session.reserved(message.epoch, message.block_ids, first_block=first_block)
        except TransferError as error:
            self._fail(job, error)
            return
        self._push(job)
        if job.first is not None and job.state is JobState.SENDING:
            job.reply(job.first)
            job.first = None
            self._release_if_safe(job)
            self.start_waiting()

    def cancel(self, request_id: str, reply: Reply) -> None:
        """The decode worker gave up. It hears `Released` when nothing can be written any more."""
        job = self._jobs.get(request_id)
        if job is None:
            reply(pb.PrefillMessage(released=pb.Released(request_id=request_id)))
        else:
            self._cancel(job)

    def lose(self, owner: PeerKey) -> None:
        """A decode worker's connection is gone: its prompts end."""
        self._streams.pop(owner, None)
        self.pulls.lost(owner)
        for job in self._jobs:
            if job.owner == owner:
                job.reply = _drop_reply
                self._cancel(job)
        self._host.tasks.spawn(asyncio.to_thread(self._host.connector.disconnect, owner))

    def _refusal(self) -> BatonError | None:
        name = self._config.worker_id
        if self._host.failure is not None:
            return WorkerLostError(f"{name}'s engine failed: {self._host.failure}")
        if self._draining:
            return UnavailableError(f"{name} is draining")
        if len(self._jobs) >= self._config.max_queued:
            return OverloadedError(f"{name} holds {self._config.max_queued} prompts, its maximum")
        return None

    def start_waiting(self) -> None:
        """Gives the engine the next prompts, and asks where to write them, while it wants work."""
        window = self._config.window_steps * self._config.engine.max_step_tokens
        while self._jobs.num_started_tokens < window:
            job = self._jobs.next_waiting()
            if job is None:
                return
            job.state = JobState.RUNNING
            job.started_s = self._clock.now_s()
            limit_s = self._config.reserve_timeout_s
            late = DeadlineError(f"no blocks were reserved within {limit_s:g} s")
            job.reserve_timer = self._host.events.call_later(limit_s, self._fail, job, late)
            job.reply(pb.PrefillMessage(reserve=pb.Reserve(request_id=job.request_id)))
            self._run(job)

    def _run(self, job: Job) -> None:
        request = job.request
        num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
        self._host.add_prompt(
            lambda engine: engine.add(request, hold=True),
            num_tokens,
            partial(self._on_engine_refusal, job),
        )

    def _on_engine_refusal(self, job: Job, error: BaseException) -> None:
        self._fail(job, error if isinstance(error, BatonError) else BatonError(str(error)))

    def dispatch(self, step: StepOutput) -> None:
        """Takes along what the engine did for prompts from here; ignores the rest."""
        # Tokens first: a client waits for them, and nobody waits for blocks alone.
        for output in step.outputs:
            job = self._jobs.get(output.request_id)
            if job is None or job.state is not JobState.RUNNING:
                continue
            if output.error is not None:
                self._fail(job, output.error)
            elif output.token_ids:
                self._send_first(job, output)
        if step.progress:
            # The streams write those tokens in the loop's next turn, and sockets get them at that
            # turn's end: this is for the one after.
            events = self._host.events
            events.call_soon(events.call_soon, self._push_all, step.progress)
        self.start_waiting()

    def _push_all(self, steps: Sequence[PrefillProgress]) -> None:
        for progress in steps:
            job = self._jobs.get(progress.request_id)
            if job is not None and job.state in (JobState.RUNNING, JobState.SENDING):
                job.session.advance(progress.num_computed_tokens, progress.block_ids)
                self._push(job)

    def _send_first(self, job: Job, output: RequestOutput) -> None:
        job.first_token_s = self._clock.now_s()
        job.num_cached_tokens = output.num_cached_tokens
        message = pb.FirstToken(
            request_id=job.request_id,
            token_id=output.token_ids[0],
            finish_reason=output.finish_reason.value if output.finish_reason else "",
            num_cached_tokens=output.num_cached_tokens,
            num_pulled_tokens=job.num_pulled_tokens,
            queue_s=job.started_s - job.queued_s,
            prefill_s=job.first_token_s - job.started_s,
            num_reasoning_tokens=output.num_reasoning_tokens,
            grammar_backend=output.grammar_backend,
        )
        if output.logprobs:
            message.logprob.CopyFrom(logprob_to_proto(output.logprobs[0]))
        job.state = JobState.SENDING
        first = pb.PrefillMessage(first_token=message)
        if not job.session.is_reserved:
            job.first = first
        else:
            job.reply(first)
            self._release_if_safe(job)

    def _push(self, job: Job) -> None:
        if job.session.error is not None:
            self._fail(job, job.session.error)
            return
        span = job.session.next_push()
        if span is None:
            return
        posted_s = self._clock.now_s()
        try:
            self._host.connector.push(
                job.owner,
                span.local_blocks,
                span.remote_blocks,
                span.notice,
                partial(self._on_pushed, job, span, posted_s),
                skip_tokens=span.skip_tokens,
            )
        except TransferError as error:
            self._pushed(job, span, posted_s, error)

    def _on_pushed(
        self, job: Job, span: PushSpan, posted_s: float, error: TransferError | None
    ) -> None:
        """On the connector's thread."""
        self._host.events.call_soon_threadsafe(self._pushed, job, span, posted_s, error)

    def _pushed(
        self, job: Job, span: PushSpan, posted_s: float, error: TransferError | None
    ) -> None:
        if error is None:
            job.pushed_s = self._clock.now_s()
            job.posted_s = job.posted_s or posted_s
            num_bytes = len(span.remote_blocks) * job.target_block_bytes
            job.num_pushed_bytes += num_bytes
            self._push_meter.observe(job.owner.worker_id, num_bytes, job.pushed_s - posted_s)
        job.session.push_done(span, error)
        if isinstance(error, PeerLostError) and job.owner in self._streams:
            # With its wire, the connection is over: the decode worker makes a new one.
            self._streams[job.owner].send(None)
        if error is not None and job.state is not JobState.CANCELLED:
            self._fail(job, error)
        else:
            self._release_if_safe(job)

    def _fail(self, job: Job, error: BatonError) -> None:
        if job.state is not JobState.CANCELLED:
            job.reply(failed(job.request_id, error))
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        if job.state is JobState.CANCELLED:
            return
        if job.reserve_timer is not None:
            job.reserve_timer.cancel()
        was_in_engine = job.state in (JobState.RUNNING, JobState.SENDING)
        job.state = JobState.CANCELLED
        job.session.cancel()
        job.first = None
        if was_in_engine:
            # Writes in flight still read these blocks; `_release_if_safe` frees them after.
            self._host.loop.call(partial(_abort_held, request_id=job.request_id))
        self._release_if_safe(job)
        self.start_waiting()

    def _release_if_safe(self, job: Job) -> None:
        ended = job.state in (JobState.SENDING, JobState.CANCELLED)
        if not ended or not job.session.safe_to_release:
            return
        self._jobs.remove(job)
        if self._host.tracing is not None:
            trace_job(self._host.tracing, job, self._clock.now_s())
        log_job(job, self._host.adapter_name(job.request.adapter_id))
        self._host.loop.call(partial(_release, request_id=job.request_id))
        job.reply(pb.PrefillMessage(released=pb.Released(request_id=job.request_id)))

    def add_queue(self, load: WorkerLoad) -> WorkerLoad:
        """The engine's load, with the prompts that it has not been given yet."""
        return dataclasses.replace(
            self._push_meter.add_samples(load),
            num_waiting=load.num_waiting + self._jobs.num_waiting,
            queued_prefill_tokens=load.queued_prefill_tokens + self._jobs.num_waiting_tokens,
            num_pulled_tokens=self.pulls.num_pulled_tokens,
            num_failed_pulls=self.pulls.num_failed,
        )


def source_of(message: pb.DecodeMessage) -> str:
    """The `PeerKey.agent` of the worker to pull a prefix from; empty where none is named."""
    if not message.HasField("pull_from"):
        return ""
    return PeerKey(message.pull_from.worker_id, message.pull_from.incarnation).agent


def failed(request_id: str, error: BatonError) -> pb.PrefillMessage:
    """The refusal of a prompt, as the decode worker hears it."""
    return pb.PrefillMessage(
        failed=pb.Failed(
            request_id=request_id,
            error_code=error.code,
            error_message=error.message,
            retryable=error.retryable,
            error_param=error.param or "",
        )
    )


def _abort_held(engine: Engine, request_id: str) -> None:
    engine.abort(request_id, quarantine=True)


def _release(engine: Engine, request_id: str) -> None:
    engine.release(request_id)


def _drop_reply(message: pb.PrefillMessage) -> None:
    """The one who asked is gone."""
