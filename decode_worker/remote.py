"""The remote leg of requests: asking a prefill worker, granting blocks, proving that KV arrived."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from baton.decode_worker.live import Live, Phase
from baton.decode_worker.peers import PeerTable, PrefillPeer
from baton.engine.engine import Reservation
from baton.engine.loop import EngineLoop
from baton.handover.config import NOTICE_GRACE_S
from baton.handover.granting import granted
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.protos import worker_pb2 as pb
from baton.protos.convert import generate_to_proto, logprob_from_proto
from baton.protos.errors import BatonError, GrammarError, StaleEpochError
from baton.protos.tasks import TaskSet
from baton.protos.types import FinishReason, GenerateRequest, RequestOutput, TokenLogprob

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCallbacks:
    """What the worker does when a remote leg moves on. Each is called on the event loop."""

    # The first token is here; its KV may not be.
    on_first: Callable[[Live, RequestOutput], None]
    # All KV is proved: (request, epoch).
    on_ready: Callable[[Live, int], None]
    # This attempt is over; the reason is for people.
    on_failed: Callable[[Live, str], None]
    # Its connection wants what is cached here of a prompt.
    on_pull: Callable[[PrefillPeer, pb.Pull], None]
    # The request can run nowhere.
    on_refused: Callable[[Live, BatonError], None]


class RemotePrefills:
    """All remote legs of one decode worker. Belongs to one event loop."""

    def __init__(
        self,
        loop: EngineLoop,
        connector: Connector,
        peers: Callable[[RemotePrefills], PeerTable],
        callbacks: RemoteCallbacks,
        *,
        block_size: int,
        chunk_tokens: int,
        lease_s: float,
    ) -> None:
        self._loop = loop
        self._connector = connector
        self._peers = peers(self)
        self._on = callbacks
        self._block_size = block_size
        self._chunk_tokens = chunk_tokens
        self._lease_s = lease_s
        self._attempts: dict[str, tuple[Live, PrefillPeer]] = {}
        self._tasks = TaskSet()
        # Asked for blocks when there were none; in order of asking.
        self._waiting: dict[str, None] = {}
        # Given up while somebody may still write: their blocks are out of use.
        self._quarantined: dict[str, PeerKey] = {}

    @property
    def num_leases(self) -> int:
        """Attempts whose blocks somebody may write to."""
        receiving = sum(live.phase is Phase.RECEIVING for live, _ in self._attempts.values())
        return len(self._quarantined) + receiving

    async def ask(self, live: Live, target: pb.PrefillTarget) -> None:
        """Asks `target` to compute the prompt. Failure to reach it is reported by on_failed."""
        live.phase = Phase.ASKED
        attempt_id = live.attempt_id
        try:
            peer = await self._peers.get(target)
        except BatonError as error:
            if live.attempt_id == attempt_id and not live.ended:
                self._on.on_failed(live, error.message)
            return
        # The attempt may have timed out, or its client gone, while we connected.
        if live.attempt_id != attempt_id or live.ended:
            return
        if peer.lost:
            self._on.on_failed(live, f"{target.worker_id} is gone")
            return
        self._attempts[attempt_id] = (live, peer)
        live.prefilled_by = target.worker_id
        prefill = generate_to_proto(attempt_request(live))
        of_request = live.request.request_id
        ask = pb.DecodeMessage(prefill=prefill, traceparent=live.traceparent, of_request=of_request)
        if live.pull_from is not None:
            ask.pull_from.CopyFrom(live.pull_from)
        peer.send(ask)

    async def connect(self, target: pb.PrefillTarget) -> None:
        """To a worker that will ask for something here. Where that fails, it goes without."""
        try:
            await self._peers.get(target)
        except BatonError as error:
            log.warning("no connection to %s: %s", target.worker_id, error.message)

    def give_up(self, live: Live) -> None:
        """Ends this attempt. Its blocks come back when the sender confirms it writes no more."""
        attempt = self._attempts.pop(live.attempt_id, None)
        self._waiting.pop(live.attempt_id, None)
        if attempt is None:
            return
        peer = attempt[1]
        granted = live.phase is Phase.RECEIVING
        if granted:
            self._quarantine(live.attempt_id, peer)
        self._expect(live, False)
        # For a reservation that is being made just now `_on_reserved` sees to it.
        attempt_id = live.attempt_id
        self._loop.call(lambda engine: engine.abort(attempt_id, quarantine=granted))
        peer.send(pb.DecodeMessage(cancel=pb.Cancel(request_id=attempt_id)))

    def retry_waiting(self) -> None:
        """Blocks may have come free: asks the engine again, oldest first."""
        waiting, self._waiting = self._waiting, {}
        for attempt_id in waiting:
            self._reserve(attempt_id)

    def on_message(self, peer: PrefillPeer, message: pb.PrefillMessage) -> None:
        """Handles what a prefill worker says."""
        match message.WhichOneof("message"):
            case "reserve":
                self._on_reserve(peer, message.reserve.request_id)
            case "first_token":
                self._on_first_token(message.first_token)
            case "failed":
                self._on_attempt_failed(message.failed)
            case "released":
                self._on_released(message.released.request_id)
            case "pull":
                self._on.on_pull(peer, message.pull)

    def on_lost(self, peer: PrefillPeer, reason: str) -> None:
        """A connection is gone: its attempts fail, and its leases end after `lease_s`, or as soon
        as that incarnation is connected again.
        """
        self._tasks.spawn(asyncio.to_thread(self._connector.disconnect, peer.key))
        self._tasks.spawn(peer.close())
        for live, owner in list(self._attempts.values()):
            if owner is peer:
                self._on.on_failed(live, f"{peer.key.worker_id} is gone: {reason}")
        for attempt_id, key in list(self._quarantined.items()):
            if key == peer.key:
                self._end_quarantine_later(attempt_id)

    def on_connected(self, peer: PrefillPeer) -> None:
        """A connection stands. Its other side has ended all older ones, and with them every write
        that was under way: blocks that waited for those may be used again.
        """
        for attempt_id, key in list(self._quarantined.items()):
            if key.agent == peer.key.agent and key.session < peer.key.session:
                self._end_quarantine(attempt_id)

    def on_notice(self, key: PeerKey, notice: Notice) -> None:
        """Blocks have arrived. A notice that no attempt expects is late and means nothing."""
        attempt = self._attempts.get(notice.request_id)
        if attempt is None or attempt[1].key.agent != key.agent:
            return
        live = attempt[0]
        if live.session is None:
            return
        try:
            live.session.prove(notice)
        except StaleEpochError as error:
            self._on.on_failed(live, error.message)
            return
        self._finish_if_complete(live)

    async def close(self) -> None:
        """Closes every connection to a prefill worker."""
        await self._peers.close()
        await self._tasks.cancel()

    def _on_reserve(self, peer: PrefillPeer, attempt_id: str) -> None:
        if attempt_id in self._attempts:
            self._attempts[attempt_id][0].phase = Phase.WAITING
            self._reserve(attempt_id)
        else:
            refusal = pb.Reservation(request_id=attempt_id, granted=False)
            peer.send(pb.DecodeMessage(reservation=refusal))

    def _reserve(self, attempt_id: str) -> None:
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            return
        request = attempt_request(attempt[0])
        # What host memory has need not be sent. Slower tiers would hold up the sender.
        call = self._loop.call_recalled
        future = asyncio.wrap_future(call(request, lambda e: e.reserve(request), near=True))
        future.add_done_callback(lambda done: self._on_reserved(attempt_id, done))

    def _on_reserved(self, attempt_id: str, done: asyncio.Future[Reservation | None]) -> None:
        attempt = self._attempts.get(attempt_id)
        error = None if done.cancelled() else done.exception()
        if done.cancelled():
            return
        if attempt is None:
            # Given up meanwhile: the abort that went to the engine then may have come too early.
            self._loop.call(lambda engine: engine.abort(attempt_id))
            return
        live, peer = attempt
        if error is not None:
            wrapped = error if isinstance(error, BatonError) else BatonError(str(error))
            self._on.on_refused(live, wrapped)
            return
        reservation = done.result()
        if reservation is None:
            self._waiting[attempt_id] = None
            return
        self._grant(live, peer, reservation)

    def _grant(self, live: Live, peer: PrefillPeer, reservation: Reservation) -> None:
        live.phase = Phase.RECEIVING
        live.num_cached_tokens = reservation.num_cached_tokens
        live.session, message = granted(reservation, self._block_size)
        # A prompt of one chunk is pushed after its first token: looking for it before would only
        # take the processor from whoever computes it.
        self._expect(live, live.num_prompt_tokens > self._chunk_tokens)
        peer.send(pb.DecodeMessage(reservation=message))

    def _on_first_token(self, message: pb.FirstToken) -> None:
        attempt = self._attempts.get(message.request_id)
        if attempt is None or (session := attempt[0].session) is None:
            return
        live = attempt[0]
        live.queue_s, live.prefill_s = message.queue_s, message.prefill_s
        live.num_cached_tokens = max(live.num_cached_tokens, message.num_cached_tokens)
        live.num_pulled_tokens = message.num_pulled_tokens
        live.first = first_output(live.attempt_id, message)
        session.first_token()
        self._expect(live, True)
        self._on.on_first(live, live.first)
        if not session.complete:
            self._connector.expect(0)
        self._finish_if_complete(live)

    def _finish_if_complete(self, live: Live) -> None:
        session = live.session
        if session is None or not session.complete or live.ended:
            return
        del self._attempts[live.attempt_id]
        live.phase = Phase.LOCAL
        self._expect(live, False)
        self._on.on_ready(live, session.epoch)

    def _expect(self, live: Live, expected: bool) -> None:
        """Has the connector look for this attempt's notices often, or no longer."""
        if live.expected is not expected:
            live.expected = expected
            self._connector.expect(1 if expected else -1)

    def _on_attempt_failed(self, message: pb.Failed) -> None:
        attempt = self._attempts.get(message.request_id)
        if attempt is None:
            return
        if message.error_code == GrammarError.default_code:
            # It is refused here too, after as long a look at it.
            param = message.error_param or None
            self._on.on_refused(attempt[0], GrammarError(message.error_message, param=param))
        else:
            self._on.on_failed(attempt[0], f"{message.error_code}: {message.error_message}")

    def _on_released(self, attempt_id: str) -> None:
        self._end_quarantine(attempt_id)
        if attempt_id in self._attempts:
            # All is written. Notices take another way than this message, and may still come.
            asyncio.get_running_loop().call_later(NOTICE_GRACE_S, self._fail_unproved, attempt_id)

    def _fail_unproved(self, attempt_id: str) -> None:
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            name = attempt[1].key.worker_id
            self._on.on_failed(attempt[0], f"{name} wrote everything, but not every notice came")

    def _quarantine(self, attempt_id: str, peer: PrefillPeer) -> None:
        self._quarantined[attempt_id] = peer.key
        if peer.lost:
            self._end_quarantine_later(attempt_id)

    def _end_quarantine_later(self, attempt_id: str) -> None:
        asyncio.get_running_loop().call_later(self._lease_s, self._end_quarantine, attempt_id)

    def _end_quarantine(self, attempt_id: str) -> None:
        if self._quarantined.pop(attempt_id, None) is not None:
            self._loop.call(lambda engine: engine.release(attempt_id))


def attempt_request(live: Live) -> GenerateRequest:
    """The request as this attempt runs it: tokens that the client has are already output."""
    request = live.request
    return GenerateRequest(
        request_id=live.attempt_id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=request.sampling,
        output_token_ids=[*request.output_token_ids, *live.emitted],
        priority=request.priority,
        cache_salt=request.cache_salt,
        grammar=request.grammar,
        thought=request.thought,
        adapter_id=request.adapter_id,
    )


def first_output(attempt_id: str, message: pb.FirstToken) -> RequestOutput:
    """The first token as if this engine had sampled it."""
    logprobs: list[TokenLogprob] | None = None
    if message.HasField("logprob"):
        value = logprob_from_proto(message.logprob)
        logprobs = [value] if value is not None else None
    return RequestOutput(
        request_id=attempt_id,
        token_ids=[message.token_id],
        logprobs=logprobs,
        finish_reason=FinishReason(message.finish_reason) if message.finish_reason else None,
        num_reasoning_tokens=message.num_reasoning_tokens,
        grammar_backend=message.grammar_backend,
    )
