"""One gateway's connection to one incarnation of one worker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from typing import Protocol

from baton.gateway.fleet_config import FleetConfig
from baton.gateway.fleet_generation import Generation
from baton.gateway.fleet_in_flight import InFlight
from baton.gateway.link_messages import dispatch_tokens, prefill_target, submit_message
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad
from baton.protos.clock import Clock
from baton.protos.convert import (
    adapters_from_proto,
    kv_events_from_proto,
    load_from_proto,
)
from baton.protos.errors import (
    AuthenticationError,
    BatonError,
    OverloadedError,
    UnavailableError,
    WorkerLostError,
)
from baton.protos.proof import GatewayGreeting
from baton.protos.stream import StreamCall
from baton.protos.types import KvEvents, Member, WorkerLoad
from baton.router.plan import Plan
from baton.router.times import H100_8B, WorkerTimes
from baton.router.view import WorkerState, WorkerView

VERSION = "1"

_log = logging.getLogger(__name__)

_Call = StreamCall[pb.GatewayMessage, pb.WorkerMessage]


class LinkOwner(Protocol):
    """Who is told what happens on a link. Every call is on the link's event loop."""

    def accept(self, link: WorkerLink, hello: pb.WorkerHello) -> str:
        """Empty to use this worker, otherwise why it is refused."""

    def link_up(self, link: WorkerLink) -> None: ...
    def link_down(self, link: WorkerLink) -> None: ...
    def load_changed(self, link: WorkerLink) -> None: ...
    def sent_changed(self, link: WorkerLink) -> None:
        """What was sent there and is not in its report yet has changed, or what is resident."""

    def kv_events(self, link: WorkerLink, events: KvEvents) -> None: ...
    def kv_gap(self, link: WorkerLink) -> None:
        """Event batches are missing: what is known of this worker's cache is no longer true."""


class WorkerLink:
    """Keeps a `Connect` stream to one incarnation while the directory lists it.

    A stream that ends takes its requests with it: each is told WorkerLostError once, and nothing
    that comes later under its handle reaches it. Belongs to one event loop.
    """

    def __init__(
        self,
        member: Member,
        owner: LinkOwner,
        *,
        gateway_id: str,
        secret: str,
        config: FleetConfig,
        clock: Clock,
    ) -> None:
        """secret: what the worker must know, and is shown to be known here."""
        self.member = member
        self.state = WorkerState.CONNECTING
        self.detail = "connecting"
        self.listed = True
        self.hello = pb.WorkerHello()
        self.in_flight = InFlight(lambda: owner.sent_changed(self))
        # The owner's to set: what it has learned of this worker.
        self.times: WorkerTimes = H100_8B.decode_pool
        self.connected_s = clock.now_s()
        self._owner = owner
        self._gateway_id = gateway_id
        self._secret = secret
        self._config = config
        self._clock = clock
        self._load = WorkerLoad()
        # None: it has not said that it serves any.
        self.adapters: AdapterLoad | None = None
        self._resident: frozenset[str] = frozenset()
        self._reported_s = clock.now_s()
        self._heard_s = clock.now_s()
        self._kv_sequence: int | None = None
        self._handles = itertools.count(1)
        self._live: dict[int, Generation] = {}
        self._submits: deque[pb.Submit] = deque()
        self._aborts: list[int] = []
        self._borrowers: list[pb.PrefillTarget] = []
        self._to_send = asyncio.Event()
        self._call: _Call | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def num_live(self) -> int:
        """Requests that run on this link."""
        return len(self._live)

    @property
    def load(self) -> WorkerLoad:
        return self._load

    @property
    def finished(self) -> bool:
        """True when the link has ended for good and can be forgotten."""
        return self._task is not None and self._task.done()

    def distrust_events(self) -> None:
        """What follows is no use until the next snapshot."""
        self._kv_sequence = None

    @property
    def knows_cache(self) -> bool:
        """True between a snapshot and whatever makes it worthless."""
        return self._kv_sequence is not None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"link-{self.member.worker_id}")

    async def close(self) -> None:
        """Ends the stream; what still runs on it is told WorkerLostError."""
        self.listed = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def view(self) -> WorkerView:
        return WorkerView(
            self.member,
            self._load,
            self._clock.now_s() - self._reported_s,
            self.in_flight.num_tokens,
            self.in_flight.num_requests,
            self.state,
            self.detail,
            self.times,
            kv_blind=self._kv_sequence is None,
            adapters=self._resident,
        )

    def submit(self, generation: Generation, plan: Plan) -> int:
        """Queues the request on the stream and returns its handle.

        Raises UnavailableError when the link is not up, OverloadedError when it does not drain.
        """
        if self.state is not WorkerState.UP:
            raise UnavailableError(f"worker {self.member.worker_id} is {self.state}")
        if len(self._submits) >= self._config.max_pending_submits:
            raise OverloadedError(
                f"{len(self._submits)} requests wait to be sent to worker {self.member.worker_id}"
            )
        handle = next(self._handles)
        submit = submit_message(handle, generation, plan, self._clock.now_s())
        self._live[handle] = generation
        self._submits.append(submit)
        self._to_send.set()
        return handle

    def abort(self, handle: int) -> None:
        """Stops the request in the worker; unknown handles (it ended meanwhile) are ignored."""
        if self._live.pop(handle, None) is not None:
            self._aborts.append(handle)
            self._to_send.set()

    def lend_to(self, borrower: Member) -> None:
        """That prefill worker will want to pull a prefix from this worker."""
        self._borrowers.append(prefill_target(borrower))
        self._to_send.set()

    def supersede(self, why: str) -> None:
        """Takes no new requests; ends when those that run here have ended."""
        self.listed = False
        if self.state is not WorkerState.REFUSED:
            self.state, self.detail = WorkerState.SUPERSEDED, why
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """Closes a superseded link that nothing runs on any more."""
        if self.state is not WorkerState.UP and not self.listed and not self._live:
            self._hang_up("superseded")

    def check_silence(self) -> None:
        """Gives the worker up when it has said nothing for `lost_after_s`."""
        silent_s = self._clock.now_s() - self._heard_s
        if self._call is not None and silent_s > self._config.lost_after_s:
            self._hang_up(f"nothing heard for {silent_s:.1f} s")

    def _hang_up(self, why: str) -> None:
        if self._call is not None:
            self._call.close(why)

    async def _run(self) -> None:
        delay_s = self._config.reconnect_min_s
        while self.listed:
            started_s = self._clock.now_s()
            await self._connect_once()
            if self._clock.now_s() - started_s > self._config.reconnect_max_s:
                delay_s = self._config.reconnect_min_s
            if self.listed:
                # Spread, so that the gateways of a fleet do not return to a worker in step.
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, self._config.reconnect_max_s)

    async def _connect_once(self) -> None:
        why = "closed by the worker"
        try:
            await self._converse()
        except AuthenticationError as error:
            self._refuse(error.message)
        except TimeoutError:
            why = f"no hello within {self._config.connect_timeout_s} s"
        except BatonError as error:
            why = error.message
        except asyncio.CancelledError:
            why = "closed by this gateway"
            raise
        except Exception as error:
            # A message that makes no sense, or a fault of ours: either way this stream is over,
            # its requests go elsewhere, and the link is made anew.
            _log.exception("link to worker %s failed", self.member.worker_id)
            why = f"{type(error).__name__}: {error}"
        finally:
            self._stream_ended(why)

    async def _converse(self) -> None:
        limit_s = self._config.connect_timeout_s
        async with asyncio.timeout(limit_s):
            call = await _Call.open(self.member.address, "Connect", pb.WorkerMessage)
        self._call = call
        self._heard_s = self._clock.now_s()
        writer: asyncio.Task[None] | None = None
        try:
            greeting = GatewayGreeting(self._secret, self._gateway_id, VERSION)
            async with asyncio.timeout(limit_s):
                message: object = await greeting.run(call)
            if not isinstance(message, pb.WorkerMessage):
                return
            self._greeted(message.hello)
            name = f"link-write-{self.member.worker_id}"
            writer = asyncio.create_task(self._write(call), name=name)
            while isinstance(message, pb.WorkerMessage):
                self._heard_s = self._clock.now_s()
                self._dispatch(message)
                message = await call.read()
        finally:
            call.close()
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: _Call) -> None:
        # A broken stream ends the reader too, which owns the outcome.
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._submits or self._aborts or self._borrowers:
                await call.write(self._next_message())

    def _next_message(self) -> pb.GatewayMessage:
        """All that waits to be sent. A write takes a turn of a busy loop: a burst must be one."""
        message = pb.GatewayMessage(borrowers=self._borrowers)
        self._borrowers.clear()
        num_bytes = 0
        while self._submits and num_bytes < self._config.max_write_bytes:
            submit = self._submits.popleft()
            num_bytes += submit.ByteSize()
            message.submits.append(submit)
        if not self._submits:
            # An abort must not overtake its submit.
            message.aborts.extend(self._aborts)
            self._aborts.clear()
        return message

    def _greeted(self, hello: pb.WorkerHello) -> None:
        expected = (self.member.worker_id, self.member.incarnation)
        if (hello.worker_id, hello.incarnation) != expected:
            raise UnavailableError(
                f"{self.member.address} answers as incarnation {hello.incarnation or '(none)'} of "
                f"{hello.worker_id or '(none)'}, not {expected[1]} of {expected[0]}"
            )
        self.hello = hello
        refusal = self._owner.accept(self, hello)
        if refusal:
            self._refuse(refusal)
            raise UnavailableError(refusal)
        self.state, self.detail = WorkerState.UP, ""
        self.connected_s = self._reported_s = self._clock.now_s()
        self._kv_sequence = None
        _log.info("worker %s is up at %s", self.member.worker_id, self.member.address)
        self._owner.link_up(self)

    def _refuse(self, why: str) -> None:
        """It is asked again, as it may be set right, but takes nothing until then."""
        if self.detail != why:
            _log.error("worker %s is refused: %s", self.member.worker_id, why)
        self.state, self.detail = WorkerState.REFUSED, why

    def _stream_ended(self, why: str) -> None:
        self._call = None
        for waiting in (self._submits, self._aborts, self._borrowers):
            waiting.clear()
        self.in_flight.clear()
        was_up = self.state is WorkerState.UP
        if self.state in (WorkerState.UP, WorkerState.CONNECTING):
            self.state, self.detail = WorkerState.CONNECTING, why
        if was_up:
            level = logging.WARNING if self.listed else logging.INFO
            _log.log(level, "link to worker %s ended: %s", self.member.worker_id, why)
            self._owner.link_down(self)
        orphans, self._live = self._live, {}
        error = WorkerLostError(f"worker {self.member.worker_id} is lost: {why}")
        for generation in orphans.values():
            generation.attempt_lost(error)

    def _dispatch(self, message: pb.WorkerMessage) -> None:
        if message.HasField("tokens"):
            dispatch_tokens(self._live, message.tokens)
        for chunk in message.logprobs:
            if (generation := self._live.get(chunk.handle)) is not None:
                generation.add_logprobs(chunk)
        for done in message.done:
            if (generation := self._live.pop(done.handle, None)) is not None:
                generation.attempt_done(done)
        for batch in message.kv_events:
            self._kv_batch(batch)
        if message.HasField("adapters"):
            self.adapters = adapters_from_proto(message.adapters)
            self._resident = frozenset(self.adapters.resident)
            self._owner.sent_changed(self)
        # After the events: its digest is of the cache that they lead to.
        if message.HasField("load"):
            self._reported(load_from_proto(message.load))

    def _reported(self, load: WorkerLoad) -> None:
        self._load = load
        self._reported_s = self._clock.now_s()
        self.in_flight.settle(self._reported_s - self._config.settle_s)
        self._owner.load_changed(self)

    def _kv_batch(self, batch: pb.KvEventBatch) -> None:
        if self.state is not WorkerState.UP:
            return
        expected = self._kv_sequence
        if expected is not None and batch.sequence != expected:
            self._kv_sequence = None
            _log.warning(
                "worker %s sent KV event batch %d where %d was due",
                self.member.worker_id,
                batch.sequence,
                expected,
            )
            self._owner.kv_gap(self)
            return
        if expected is None and not batch.cleared:
            # Only a snapshot starts a history; after a gap the rest of this stream is no use.
            return
        self._kv_sequence = batch.sequence + 1
        self._owner.kv_events(self, kv_events_from_proto(batch))
