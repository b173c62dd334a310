"""The decode worker: owns requests, from a gateway's `Submit` to their `Done`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.live import Live, Phase
from baton.decode_worker.peers import PeerTable
from baton.decode_worker.remote import RemoteCallbacks, RemotePrefills, attempt_request
from baton.decode_worker.service import DecodeService
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.engine.parallel.hosts import RankHost
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.kvtransfer.factory import make_connector
from baton.kvtransfer.hello import read_identity
from baton.protos import worker_pb2 as pb
from baton.protos.clock import Clock, SystemClock
from baton.protos.convert import generate_from_proto, logprobs_to_proto, worker_hello
from baton.protos.errors import (
    BatonError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
    WorkerLostError,
)
from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.reporter import Reporter, with_queue
from baton.protos.server import start_worker_server
from baton.protos.tasks import TaskSet
from baton.protos.types import (
    FinishReason,
    Member,
    RequestOutput,
    Role,
    StepOutput,
    WorkerLoad,
)

log = logging.getLogger(__name__)


class DecodeWorker:
    """One decode worker on one event loop. `start` before anything else, `close` at the end.

    ranks: where the other ranks of a tensor-parallel model live; None: on this machine.
    """

    def __init__(
        self,
        config: DecodeWorkerConfig,
        *,
        clock: Clock | None = None,
        ranks: RankHost | None = None,
    ) -> None:
        self.config = config
        self._ranks = ranks
        self.hub = FeedHub()
        self.failure: BaseException | None = None
        self._clock = clock or SystemClock()
        self._counter = itertools.count(1)
        # By attempt id, and by (feed, handle): every request owned here is in the second.
        self._by_attempt: dict[str, Live] = {}
        self._by_handle: dict[tuple[GatewayFeed, int], Live] = {}
        self._draining = False
        self._tasks = TaskSet()

    async def start(self) -> Member:
        """Loads the model, registers the KV pool, binds the port.

        Raises ModelLoadError or ConfigError, with nothing left running.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self.member()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        self._events = asyncio.get_running_loop()
        self._engine = await asyncio.to_thread(Engine, config.engine, ranks=self._ranks)
        stack.callback(self._engine.close)
        self._loop = EngineLoop(self._engine, self._on_step, self._on_death)
        self._reporter = Reporter(self._events, self._loop.call, self, self.hub)
        me = PeerKey(config.worker_id, config.incarnation)
        self._connector = await asyncio.to_thread(
            make_connector,
            config.connector,
            self._engine.pool.tensor,
            self._engine.pool.layout,
            me,
            self._on_notice,
            config.host,
        )
        stack.push_async_callback(asyncio.to_thread, self._connector.close)
        self._loop.start()
        stack.push_async_callback(asyncio.to_thread, self._loop.stop)
        self._remote = self._make_remote(self._connector)
        stack.push_async_callback(self._remote.close)
        self._server = await start_worker_server(DecodeService(self), config.host, config.port)
        stack.push_async_callback(self._server.server.stop, 1.0)
        self._tasks.spawn(self._reporter.run(config.report_interval_s, self._remote.retry_waiting))

    def member(self) -> Member:
        """This worker as the directory lists it."""
        model = self._engine.model
        return Member(
            worker_id=self.config.worker_id,
            incarnation=self.config.incarnation,
            role=Role.DECODE,
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

    async def join(self, feed: GatewayFeed) -> None:
        """Adds a gateway: its stream begins with a snapshot of this worker's prefix cache."""
        await self._reporter.join(feed)

    def leave(self, feed: GatewayFeed) -> None:
        """A gateway is gone: nobody reads its requests' tokens any more."""
        self.hub.leave(feed)
        for live in [live for (owner, _), live in self._by_handle.items() if owner is feed]:
            self._drop(live)

    def submit(self, feed: GatewayFeed, message: pb.Submit) -> None:
        """Takes a request over. Refusals go to the gateway as its `Done`."""
        now_s = self._clock.now_s()
        limit_s = message.deadline_s or self.config.max_request_s
        live = Live(
            feed=feed,
            handle=message.handle,
            request=generate_from_proto(message.generate),
            targets=list(message.prefill),
            submitted_s=now_s,
            deadline_s=now_s + limit_s,
        )
        self._by_handle[feed, message.handle] = live
        if live.targets and self.config.engine.tensor_parallel_size > 1:
            live.targets = []
            live.fallback_reason = "a tensor-parallel decode worker receives no KV yet"
        error = self._refusal(live)
        if error is not None:
            self._end(live, FinishReason.ERROR, error)
            return
        timeout = DeadlineError(f"the request did not finish within its {limit_s:g} s")
        self._after(live, limit_s, lambda: self._fail(live, timeout))
        self._next_attempt(live)

    def abort(self, feed: GatewayFeed, handle: int) -> None:
        """The client is gone. Unknown handles have ended already."""
        live = self._by_handle.get((feed, handle))
        if live is not None:
            self._drop(live)

    async def drain(self, grace_s: float) -> None:
        """Takes no new requests, waits for the running ones and for leased blocks.

        What has not ended within `grace_s` goes back to its gateway, which replays it elsewhere.
        """
        self._draining = True
        end_s = self._clock.now_s() + grace_s
        while self._clock.now_s() < end_s and (self._by_handle or self._remote.num_leases):
            await asyncio.sleep(0.05)
        moved = WorkerLostError(f"{self.config.worker_id} is leaving")
        for live in list(self._by_handle.values()):
            self._fail(live, moved)
        # One more turn, so that the streams take these messages along.
        await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Stops everything; requests still here are handed back to their gateways."""
        await self.drain(0.0)
        await self._tasks.cancel()
        self.hub.close()
        await self._stack.aclose()

    def num_requests(self) -> int:
        """Requests owned now."""
        return len(self._by_handle)

    async def load(self) -> WorkerLoad:
        """The load as the next report will tell it."""
        return await self._reporter.load()

    async def check_integrity(self) -> None:
        """Proves that no block is lost; raises BatonError otherwise."""
        await asyncio.wrap_future(self._loop.call(Engine.check_integrity))

    def _refusal(self, live: Live) -> BatonError | None:
        if self.failure is not None:
            return WorkerLostError(f"{self.config.worker_id}'s engine failed: {self.failure}")
        if self._draining:
            return UnavailableError(f"{self.config.worker_id} is draining")
        if len(self._by_handle) > self.config.max_requests:
            return OverloadedError(
                f"{self.config.worker_id} owns {self.config.max_requests} requests, its maximum"
            )
        return None

    def _next_attempt(self, live: Live) -> None:
        """Tries the next prefill worker that is left, or prefills here."""
        live.attempt_id = f"{self.config.incarnation[:8]}-{next(self._counter)}"
        live.session, live.first = None, None
        self._by_attempt[live.attempt_id] = live
        if live.targets:
            attempt_id = live.attempt_id
            left_s = live.deadline_s - self._clock.now_s()
            # Half of what is left, so that a local prefill still fits into the deadline.
            limit_s = min(self.config.prefill_timeout_s, left_s / 2)
            self._after(live, limit_s, lambda: self._on_remote_late(live, attempt_id, limit_s))
            self._tasks.spawn(self._remote.ask(live, live.targets.pop(0)))
        else:
            live.phase = Phase.LOCAL
            live.prefilled_by = ""
            self._in_engine(live, self._adding(live))

    def _adding(self, live: Live) -> Callable[[Engine], None]:
        request = attempt_request(live)
        return lambda engine: engine.add(request)

    def _in_engine(self, live: Live, command: Callable[[Engine], None]) -> None:
        future = asyncio.wrap_future(self._loop.call(command))
        future.add_done_callback(lambda done: self._on_engine_refusal(live, done))

    def _on_engine_refusal(self, live: Live, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None or live.ended:
            return
        self._end(
            live,
            FinishReason.ERROR,
            error if isinstance(error, BatonError) else WorkerLostError(str(error)),
        )

    def _on_remote_late(self, live: Live, attempt_id: str, limit_s: float) -> None:
        if live.attempt_id == attempt_id and live.phase is not Phase.LOCAL and not live.ended:
            self._on_remote_failed(live, f"{live.prefilled_by} not done within {limit_s:.3g} s")

    def _on_first(self, live: Live, output: RequestOutput) -> None:
        if not live.emitted:
            live.first_token_s = self._clock.now_s()
        self._emit(live, output)
        live.emitted.extend(output.token_ids)
        if output.finish_reason is not None:
            self._remote.give_up(live)
            live.last = output
            self._end(live, output.finish_reason, output.error)

    def _on_ready(self, live: Live, epoch: int) -> None:
        first = live.first
        if first is None:
            raise AssertionError("a receive session is complete only with its first token")
        live.transfer_s = self._clock.now_s() - live.first_token_s
        attempt_id = live.attempt_id
        self._in_engine(live, lambda engine: engine.receive(attempt_id, epoch, first))

    def _on_remote_failed(self, live: Live, reason: str) -> None:
        log.warning("%s: remote prefill failed: %s", live.request.request_id, reason)
        self._remote.give_up(live)
        self._by_attempt.pop(live.attempt_id, None)
        live.fallback_reason = reason
        self._next_attempt(live)

    def _fail(self, live: Live, error: BatonError) -> None:
        """Ends a request that may be running anywhere."""
        if not live.ended:
            self._stop_work(live)
            self._end(live, FinishReason.ERROR, error)

    def _drop(self, live: Live) -> None:
        """Ends a request whose client is gone: nothing is reported."""
        self._stop_work(live)
        self._forget(live)

    def _stop_work(self, live: Live) -> None:
        if live.phase is Phase.LOCAL:
            attempt_id = live.attempt_id
            self._loop.call(lambda engine: engine.abort(attempt_id))
        else:
            self._remote.give_up(live)

    def _end(self, live: Live, reason: FinishReason, error: BatonError | None = None) -> None:
        live.feed.done(live.done(reason, error))
        self._forget(live)

    def _forget(self, live: Live) -> None:
        live.ended = True
        live.stop_timers()
        self._by_attempt.pop(live.attempt_id, None)
        self._by_handle.pop((live.feed, live.handle), None)

    def _emit(self, live: Live, output: RequestOutput) -> None:
        live.feed.tokens(live.handle, output.token_ids)
        if output.logprobs or output.prompt_logprobs:
            live.feed.logprobs(logprobs_to_proto(live.handle, output))

    def _on_step(self, step: StepOutput) -> None:
        """On the engine's thread."""
        self._reporter.after_step(self._engine, step, self._dispatch)

    def _dispatch(self, step: StepOutput) -> None:
        ended = False
        for output in step.outputs:
            live = self._by_attempt.get(output.request_id)
            if live is None:
                continue
            if live.first_token_s == 0.0:
                live.first_token_s = self._clock.now_s()
                live.prefill_s = live.first_token_s - live.submitted_s
                live.num_cached_tokens = output.num_cached_tokens
            if output.token_ids:
                self._emit(live, output)
            if output.finish_reason is not None:
                ended = True
                live.last = output
                self._end(live, output.finish_reason, output.error)
        if ended:
            self._remote.retry_waiting()

    def add_queue(self, load: WorkerLoad) -> WorkerLoad:
        """The engine's load, with the requests that are not in its batch yet."""
        return with_queue(
            load,
            num_waiting=len(self._by_handle) - load.num_running,
            queued_prefill_tokens=load.queued_prefill_tokens,
            draining=self._draining,
        )

    def _on_notice(self, key: PeerKey, notice: Notice) -> None:
        """On the connector's thread."""
        self._events.call_soon_threadsafe(self._remote.on_notice, key, notice)

    def _on_death(self, error: BaseException) -> None:
        """On the engine's thread: nothing here can go on, but every request can, elsewhere."""
        log.error("%s: the engine failed", self.config.worker_id, exc_info=error)
        self._events.call_soon_threadsafe(self._hand_back, error)

    def _hand_back(self, error: BaseException) -> None:
        self.failure = error
        lost = WorkerLostError(f"{self.config.worker_id}'s engine failed: {error}")
        for live in list(self._by_handle.values()):
            self._end(live, FinishReason.ERROR, lost)
        self._tasks.spawn(self._server.set_serving(False))

    def _make_remote(self, connector: Connector) -> RemotePrefills:
        identity = read_identity(
            connector.local_info(),
            connector=self.config.connector,
            model_dir=self.config.engine.model_dir,
            model_digest=self._engine.model.digest,
            secret=self.config.secret,
        )

        def peers(remote: RemotePrefills) -> PeerTable:
            return PeerTable(
                identity,
                connector,
                handshake_timeout_s=self.config.handshake_timeout_s,
                on_message=remote.on_message,
                on_lost=remote.on_lost,
                on_connected=remote.on_connected,
            )

        callbacks = RemoteCallbacks(
            on_first=self._on_first,
            on_ready=self._on_ready,
            on_failed=self._on_remote_failed,
            on_refused=self._fail,
        )
        return RemotePrefills(
            self._loop,
            connector,
            peers,
            callbacks,
            block_size=self.config.engine.block_size,
            lease_s=self.config.lease_s,
        )

    def _after(self, live: Live, delay_s: float, action: Callable[[], None]) -> None:
        live.timers.append(self._events.call_later(delay_s, action))
