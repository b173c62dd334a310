"""The prefill worker: computes prompts for decode workers and pushes their KV there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.factory import make_connector
from baton.kvtransfer.hello import read_identity
from baton.kvtransfer.session import PushSpan, SendSession
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.jobs import Job, JobState, JobTable
from baton.prefill_worker.push_meter import PushMeter
from baton.prefill_worker.service import PrefillService
from baton.protos import worker_pb2 as pb
from baton.protos.clock import Clock, SystemClock
from baton.protos.convert import generate_from_proto, logprob_to_proto, worker_hello
from baton.protos.errors import (
    BatonError,
    ConfigError,
    DeadlineError,
    OverloadedError,
    PeerLostError,
    TransferError,
    UnavailableError,
    WorkerLostError,
)
from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.reporter import Reporter, with_queue
from baton.protos.server import start_worker_server
from baton.protos.tasks import TaskSet
from baton.protos.types import Member, RequestOutput, Role, StepOutput, WorkerLoad

log = logging.getLogger(__name__)

Reply = Callable[[pb.PrefillMessage], None]


class Stream(NamedTuple):
    """A connected decode worker: the size of its blocks in tokens, and how to end its stream."""

    block_size: int
    end: Callable[[], None]


class PrefillWorker:
    """One prefill worker on one event loop. `start` before anything else, `close` at the end."""

    def __init__(self, config: PrefillWorkerConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.hub = FeedHub()
        self.failure: BaseException | None = None
        self._clock = clock or SystemClock()
        self._jobs = JobTable()
        self._streams: dict[PeerKey, Stream] = {}
        self._draining = False
        self._tasks = TaskSet()

    async def start(self) -> Member:
        """Loads the model, registers the KV pool, binds the port.

        Raises ModelLoadError or ConfigError, with nothing left running.
        """
        size = self.config.engine.tensor_parallel_size
        if size > 1:
            raise ConfigError(
                f"tensor_parallel_size is {size}, but prefill workers run on 1 rank; several are "
                "for decode workers that compute their prompts themselves",
                param="engine.tensor_parallel_size",
            )
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self.member()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        self._events = asyncio.get_running_loop()
        self._engine = await asyncio.to_thread(Engine, config.engine)
        stack.callback(self._engine.close)
        self._loop = EngineLoop(self._engine, self._on_step, self._on_death)
        self._reporter = Reporter(self._events, self._loop.call, self, self.hub)
        pool = self._engine.pool
        self._push_meter = PushMeter(pool.layout.block_bytes)
        me = PeerKey(config.worker_id, config.incarnation)
        self._connector = await asyncio.to_thread(
            make_connector,
            config.connector,
            pool.tensor,
            pool.layout,
            me,
            _ignore_notice,
            config.host,
        )
        stack.push_async_callback(asyncio.to_thread, self._connector.close)
        self.identity = read_identity(
            self._connector.local_info(),
            connector=config.connector,
            model_dir=config.engine.model_dir,
            model_digest=self._engine.model.digest,
            secret=config.secret,
        )
        self._loop.start()
        stack.push_async_callback(asyncio.to_thread, self._loop.stop)
        self._server = await start_worker_server(PrefillService(self), config.host, config.port)
        stack.push_async_callback(self._server.server.stop, 1.0)
        self._tasks.spawn(self._reporter.run(config.report_interval_s, self._start_waiting))

    def member(self) -> Member:
        """This worker as the directory lists it."""
        model = self._engine.model
        return Member(
            worker_id=self.config.worker_id,
            incarnation=self.config.incarnation,
            role=Role.PREFILL,
            address=f"{self.config.host}:{self._server.port}",
            model=self.config.model_name or model.name,
            model_digest=model.digest,
        )

    def hello(self) -> pb.WorkerHello:
        """What a gateway learns first."""
        model = self._engine.model
        return worker_hello(
            self.member(),
            block_size=self.config.engine.block_size,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
        )

    async def greet(self, peer: PeerInfo, end: Callable[[], None]) -> None:
        """Connects the KV wire to a decode worker; `end` ends its stream when that wire is lost.

        Raises LayoutMismatchError, PeerLostError. `lose` must follow, whatever happens.
        """
        self._streams[peer.key] = Stream(peer.layout.block_size, end)
        await asyncio.to_thread(self._connector.connect, peer)

    def take(self, owner: PeerKey, message: pb.Generate, reply: Reply) -> None:
        """Queues a prompt, or refuses it."""
        request = generate_from_proto(message)
        error = self._refusal()
        if error is not None:
            reply(failed(request.request_id, error))
            return
        job = Job(
            request=request,
            owner=owner,
            reply=reply,
            session=SendSession(
                request.request_id,
                num_tokens=len(request.prompt_token_ids) + len(request.output_token_ids),
                block_size=self.config.engine.block_size,
                target_block_size=self._streams[owner].block_size,
            ),
            queued_s=self._clock.now_s(),
        )
        self._jobs.add(job)
        self._start_waiting()

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
            first_block = message.num_cached_tokens // self._streams[job.owner].block_size
            job.session.reserved(message.epoch, message.block_ids, first_block=first_block)
        except TransferError as error:
            self._fail(job, error)
            return
        self._push(job)
        if job.first is not None and job.state is JobState.SENDING:
            job.reply(job.first)
            job.first = None
            self._release_if_safe(job)
            self._start_waiting()

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
        for job in self._jobs:
            if job.owner == owner:
                job.reply = _drop_reply
                self._cancel(job)
        self._tasks.spawn(asyncio.to_thread(self._connector.disconnect, owner))

    async def join(self, feed: GatewayFeed) -> None:
        """Adds a gateway: its stream begins with a snapshot of this worker's prefix cache."""
        await self._reporter.join(feed)

    async def drain(self, grace_s: float) -> None:
        """Takes no new prompts, waits for the taken ones, refuses the rest after `grace_s`."""
        self._draining = True
        end_s = self._clock.now_s() + grace_s
        while self._clock.now_s() < end_s and len(self._jobs):
            await asyncio.sleep(0.05)
        for job in self._jobs:
            self._fail(job, UnavailableError(f"{self.config.worker_id} is leaving"))
        await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Stops everything; prompts still here are refused, so that their owners go elsewhere."""
        await self.drain(0.0)
        await self._tasks.cancel()
        self.hub.close()
        await self._stack.aclose()

    def num_requests(self) -> int:
        """Prompts that are waiting, running or being sent."""
        return len(self._jobs)

    async def load(self) -> WorkerLoad:
        """The load as the next report will tell it."""
        return await self._reporter.load()

    async def check_integrity(self) -> None:
        """Proves that no block is lost; raises BatonError otherwise."""
        await asyncio.wrap_future(self._loop.call(Engine.check_integrity))

    def _refusal(self) -> BatonError | None:
        name = self.config.worker_id
        if self.failure is not None:
            return WorkerLostError(f"{name}'s engine failed: {self.failure}")
        if self._draining:
            return UnavailableError(f"{name} is draining")
        if len(self._jobs) >= self.config.max_queued:
            return OverloadedError(f"{name} holds {self.config.max_queued} prompts, its maximum")
        return None

    def _start_waiting(self) -> None:
        """Gives the engine the next prompts, and asks where to write them, while it wants work."""
        window = self.config.window_steps * self.config.engine.max_step_tokens
        while self._jobs.num_started_tokens < window:
            job = self._jobs.next_waiting()
            if job is None:
                return
            job.state = JobState.RUNNING
            job.started_s = self._clock.now_s()
            limit_s = self.config.reserve_timeout_s
            late = DeadlineError(f"no blocks were reserved within {limit_s:g} s")
            job.reserve_timer = self._events.call_later(limit_s, self._fail, job, late)
            job.reply(pb.PrefillMessage(reserve=pb.Reserve(request_id=job.request_id)))
            self._run(job)

    def _run(self, job: Job) -> None:
        request = job.request
        future = asyncio.wrap_future(self._loop.call(lambda e: e.add(request, hold=True)))
        future.add_done_callback(lambda done: self._on_engine_refusal(job, done))

    def _on_engine_refusal(self, job: Job, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._fail(job, error if isinstance(error, BatonError) else BatonError(str(error)))

    def _on_step(self, step: StepOutput) -> None:
        """On the engine's thread."""
        self._reporter.after_step(self._engine, step, self._dispatch)

    def _dispatch(self, step: StepOutput) -> None:
        # Tokens first: a client waits for them, and nobody waits for blocks alone.
        for output in step.outputs:
            job = self._jobs.get(output.request_id)
            if job is None or job.state is not JobState.RUNNING:
                continue
            if output.error is not None:
                self._fail(job, output.error)
            elif output.token_ids:
                self._send_first(job, output)
        for progress in step.progress:
            job = self._jobs.get(progress.request_id)
            if job is not None and job.state in (JobState.RUNNING, JobState.SENDING):
                job.session.advance(progress.num_computed_tokens, progress.block_ids)
                self._push(job)
        self._start_waiting()

    def _send_first(self, job: Job, output: RequestOutput) -> None:
        message = pb.FirstToken(
            request_id=job.request_id,
            token_id=output.token_ids[0],
            finish_reason=output.finish_reason.value if output.finish_reason else "",
            num_cached_tokens=output.num_cached_tokens,
            queue_s=job.started_s - job.queued_s,
            prefill_s=self._clock.now_s() - job.started_s,
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
            self._connector.push(
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
        self._events.call_soon_threadsafe(self._pushed, job, span, posted_s, error)

    def _pushed(
        self, job: Job, span: PushSpan, posted_s: float, error: TransferError | None
    ) -> None:
        if error is None:
            seconds = self._clock.now_s() - posted_s
            self._push_meter.observe(job.owner.worker_id, len(span.local_blocks), seconds)
        job.session.push_done(span, error)
        if isinstance(error, PeerLostError) and job.owner in self._streams:
            # With its wire, the connection is over: the decode worker makes a new one.
            self._streams[job.owner].end()
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
            self._loop.call(partial(_abort_held, request_id=job.request_id))
        self._release_if_safe(job)
        self._start_waiting()

    def _release_if_safe(self, job: Job) -> None:
        ended = job.state in (JobState.SENDING, JobState.CANCELLED)
        if not ended or not job.session.safe_to_release:
            return
        self._jobs.remove(job)
        self._loop.call(partial(_release, request_id=job.request_id))
        job.reply(pb.PrefillMessage(released=pb.Released(request_id=job.request_id)))

    def add_queue(self, load: WorkerLoad) -> WorkerLoad:
        """The engine's load, with the prompts that it has not been given yet."""
        return with_queue(
            self._push_meter.add_samples(load),
            num_waiting=load.num_waiting + self._jobs.num_waiting,
            queued_prefill_tokens=load.queued_prefill_tokens + self._jobs.num_waiting_tokens,
            draining=self._draining,
        )

    def _on_death(self, error: BaseException) -> None:
        """On the engine's thread."""
        log.error("%s: the engine failed", self.config.worker_id, exc_info=error)
        self._events.call_soon_threadsafe(self._refuse_all, error)

    def _refuse_all(self, error: BaseException) -> None:
        self.failure = error
        lost = WorkerLostError(f"{self.config.worker_id}'s engine failed: {error}")
        for job in self._jobs:
            self._fail(job, lost)
        self._tasks.spawn(self._server.set_serving(False))


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


def _ignore_notice(key: PeerKey, notice: Notice) -> None:
    log.warning("%s wrote into a prefill worker's pool: %s", key, notice)
