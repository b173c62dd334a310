"""The decode worker: owns requests, from a gateway's `Submit` to their `Done`."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Final

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.live import Live, Phase
from baton.decode_worker.peers import PeerTable
from baton.decode_worker.remote import RemoteCallbacks, RemotePrefills, attempt_request
from baton.decode_worker.trace import end_span, log_end
from baton.engine.parallel.hosts import RankHost
from baton.handover.host import MakeConnector, WorkerHost
from baton.handover.sender import PromptSender
from baton.handover.service import WorkerService
from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.factory import make_connector
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterRef
from baton.protos.clock import Clock, SystemClock
from baton.protos.convert import generate_from_proto, logprobs_to_proto
from baton.protos.errors import (
    BatonError,
    CancelledError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
    WorkerLeavingError,
    WorkerLostError,
)
from baton.protos.feed import GatewayFeed
from baton.protos.logs import fields
from baton.protos.reporter import with_queue
from baton.protos.types import (
    FinishReason,
    Member,
    RequestOutput,
    Role,
    StepOutput,
    WorkerLoad,
)
from baton.protos.worker_pb2_grpc import WorkerServicer

log = logging.getLogger(__name__)

_DRAIN_POLL_S: Final = 0.05
# A gateway sends a handed back request elsewhere, and that worker asks for its KV, within this.
_ASKED_WITHIN_S: Final = 1.0


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
        connectors: MakeConnector = make_connector,
    ) -> None:
        self.config = config
        self._clock = clock or SystemClock()
        self._counter = itertools.count(1)
        # By attempt id, and by (feed, handle): every request owned here is in the second.
        self._by_attempt: dict[str, Live] = {}
        self._by_handle: dict[tuple[GatewayFeed, int], Live] = {}
        self._draining = False
        self._host = WorkerHost(config, Role.DECODE, self, ranks=ranks, connectors=connectors)

    async def start(self) -> Member:
        """Loads the model, registers the KV pool, binds the port.

        Raises ModelLoadError or ConfigError, with nothing left running.
        """
        return await self._host.start()

    @property
    def host(self) -> WorkerHost:
        """The engine and what surrounds it."""
        return self._host

    @property
    def failure(self) -> BaseException | None:
        """Why this worker can do no more, once that is so."""
        return self._host.failure

    def leave(self, feed: GatewayFeed) -> None:
        """A gateway is gone: nobody reads its requests' tokens any more."""
        self._host.hub.leave(feed)
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
            pull_from=message.pull_from if message.HasField("pull_from") else None,
            submitted_s=now_s,
            deadline_s=now_s + limit_s,
            traceparent=message.traceparent,
        )
        if self._host.tracing is not None:
            live.span = self._host.tracing.begin("baton.worker", message.traceparent, now_s)
            live.traceparent = live.span.traceparent
        self._by_handle[feed, message.handle] = live
        error = self._refusal(live)
        if error is not None:
            self._end(live, FinishReason.ERROR, error)
            return
        timeout = DeadlineError(f"the request did not finish within its {limit_s:g} s")
        self._after(live, limit_s, lambda: self._fail(live, timeout))
        self._next_attempt(live)
        self._host.reporter.soon()

    def connect(self, target: pb.PrefillTarget) -> None:
        """See `GatewaySide`."""
        self._host.tasks.spawn(self._remote.connect(target))

    def abort(self, feed: GatewayFeed, handle: int) -> None:
        """The client is gone. Unknown handles have ended already."""
        live = self._by_handle.get((feed, handle))
        if live is not None:
            self._drop(live)

    async def drain(self, grace_s: float) -> None:
        """Takes no new requests, waits for the running ones and for leased blocks.

        What has not ended within `grace_s` goes back to its gateway, which sends it to another
        decode worker. That one fetches the KV from here, as from a prefill worker, for at most
        `move_s`; what it does not fetch, it computes.
        """
        self._draining = True
        end_s = self._clock.now_s() + grace_s
        while self._clock.now_s() < end_s and (
            self._by_handle or self._remote.num_leases or len(self._sender.lender)
        ):
            await asyncio.sleep(_DRAIN_POLL_S)
        await self._hand_over(self.config.move_s if grace_s > 0 else 0.0)

    async def _hand_over(self, move_s: float) -> None:
        """Sends every request elsewhere, and serves its KV while it is asked for."""
        leaving = WorkerLeavingError(f"{self.config.worker_id} is leaving")
        waits = move_s > 0 and bool(self._by_handle)
        for live in list(self._by_handle.values()):
            self._fail(live, leaving)
        # One more turn, so that the streams take these messages along.
        await asyncio.sleep(0.1)
        began_s = self._clock.now_s()
        while waits and (waited_s := self._clock.now_s() - began_s) < move_s:
            if waited_s > _ASKED_WITHIN_S and not len(self._sender):
                break
            await asyncio.sleep(_DRAIN_POLL_S)
        self._sender.fail_all(leaving)

    async def close(self) -> None:
        """Stops everything; requests still here are handed back to their gateways."""
        await self.drain(0.0)
        await self._host.close()

    def num_requests(self) -> int:
        """Requests owned now."""
        return len(self._by_handle)

    async def load(self) -> WorkerLoad:
        """The load as the next report will tell it."""
        return await self._host.load()

    async def load_adapter(self, ref: AdapterRef) -> None:
        """See `WorkerHost.load_adapter`."""
        await self._host.load_adapter(ref)

    async def unload_adapter(self, adapter_id: str) -> None:
        """See `WorkerHost.unload_adapter`."""
        await self._host.unload_adapter(adapter_id)

    async def check_integrity(self) -> None:
        """Proves that no block is lost; raises BatonError otherwise."""
        await self._host.check_integrity()

    def _refusal(self, live: Live) -> BatonError | None:
        if self._host.failure is not None:
            return WorkerLostError(f"{self.config.worker_id}'s engine failed: {self._host.failure}")
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
            self._host.tasks.spawn(self._remote.ask(live, live.targets.pop(0)))
        else:
            live.phase = Phase.LOCAL
            live.prefilled_by = ""
            request = attempt_request(live)
            num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
            refused = partial(self._on_engine_refusal, live)
            self._host.add_prompt(lambda engine: engine.add(request), num_tokens, refused)

    def _on_engine_refusal(self, live: Live, error: BaseException) -> None:
        if live.ended:
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
        self._host.command(
            lambda engine: engine.receive(attempt_id, epoch, first),
            partial(self._on_engine_refusal, live),
        )

    def _on_remote_failed(self, live: Live, reason: str) -> None:
        about = fields(request_id=live.request.request_id, worker=live.prefilled_by)
        log.warning("remote prefill failed: %s", reason, extra=about)
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
        self._forget(live, CancelledError.default_code)

    def _stop_work(self, live: Live) -> None:
        if live.phase is Phase.LOCAL:
            attempt_id = live.attempt_id
            self._host.loop.call(lambda engine: engine.abort(attempt_id))
        else:
            self._remote.give_up(live)

    def _end(self, live: Live, reason: FinishReason, error: BatonError | None = None) -> None:
        live.feed.done(live.done(reason, error))
        self._forget(live, "" if error is None else error.code)

    def _forget(self, live: Live, error: str) -> None:
        live.ended = True
        now_s = self._clock.now_s()
        if live.span is not None:
            end_span(live.span, live, now_s, error)
        log_end(live, now_s, error, self._host.adapter_name(live.request.adapter_id))
        live.stop_timers()
        self._by_attempt.pop(live.attempt_id, None)
        self._by_handle.pop((live.feed, live.handle), None)

    def _emit(self, live: Live, output: RequestOutput) -> None:
        live.feed.tokens(live.handle, output.token_ids)
        if output.logprobs or output.prompt_logprobs:
            live.feed.logprobs(logprobs_to_proto(live.handle, output))

    def dispatch(self, step: StepOutput) -> None:
        """See `Work`."""
        self._sender.dispatch(step)
        ended = False
        for output in step.outputs:
            live = self._by_attempt.get(output.request_id)
            if live is None:
                continue
            if live.first_token_s == 0.0:
                live.first_token_s = self._clock.now_s()
                live.queue_s = max(0.0, output.began_s - live.submitted_s)
                live.prefill_s = live.first_token_s - live.submitted_s - live.queue_s
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
        load = self._sender.add_queue(load)
        unplaced = sum(
            math.ceil(live.num_prompt_tokens / self.config.engine.block_size)
            for live in self._by_handle.values()
            if live.phase in (Phase.START, Phase.ASKED, Phase.WAITING)
        )
        load = dataclasses.replace(load, unplaced_blocks=load.unplaced_blocks + unplaced)
        return with_queue(
            load,
            num_waiting=max(0, len(self._by_handle) + len(self._sender) - load.num_running),
            queued_prefill_tokens=load.queued_prefill_tokens,
            draining=self._draining,
        )

    def begin(self) -> WorkerServicer:
        """See `Work`."""
        self._remote = self._make_remote()
        self._sender = PromptSender(self._host, self._clock)
        return WorkerService(self, self._host, self._sender)

    def on_notice(self, key: PeerKey, notice: Notice) -> None:
        """See `Work`."""
        self._remote.on_notice(key, notice)
        self._sender.pulls.on_notice(key, notice)

    def on_tick(self) -> None:
        """See `Work`."""
        self._remote.retry_waiting()

    def fail_all(self, error: WorkerLostError) -> None:
        """Hands every request back to its gateway: it can go on elsewhere."""
        self._sender.fail_all(error)
        for live in list(self._by_handle.values()):
            self._end(live, FinishReason.ERROR, error)

    async def end(self) -> None:
        """See `Work`."""
        await self._remote.close()

    def _make_remote(self) -> RemotePrefills:
        def peers(remote: RemotePrefills) -> PeerTable:
            return PeerTable(
                self._host.identity,
                self._host.connector,
                handshake_timeout_s=self.config.handshake_timeout_s,
                on_message=remote.on_message,
                on_lost=remote.on_lost,
                on_connected=remote.on_connected,
            )

        callbacks = RemoteCallbacks(
            on_first=self._on_first,
            on_ready=self._on_ready,
            on_failed=self._on_remote_failed,
            on_pull=lambda peer, pull: self._sender.lender.lend(peer.borrower(), pull),
            on_refused=self._fail,
        )
        return RemotePrefills(
            self._host.loop,
            self._host.connector,
            peers,
            callbacks,
            block_size=self.config.engine.block_size,
            chunk_tokens=self.config.engine.max_step_tokens,
            lease_s=self.config.lease_s,
        )

    def _after(self, live: Live, delay_s: float, action: Callable[[], None]) -> None:
        live.timers.append(self._host.events.call_later(delay_s, action))
