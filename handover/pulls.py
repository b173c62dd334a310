"""Prefixes that prompts computed here begin with, fetched from workers that have them cached.

A pull goes over the `Handover` stream that the other worker keeps open to this one, the other way
round: this worker says which blocks to write to, the other says how much of the prompt it has
(`handover/lender.py`), and writes it. What came is in the prefix cache here, where the prompt then
finds it; what did not come in time is computed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from baton.engine.engine import Engine, Reservation
from baton.handover.config import NOTICE_GRACE_S
from baton.handover.granting import granted
from baton.handover.host import WorkerHost
from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.session import ReceiveSession
from baton.protos import worker_pb2 as pb
from baton.protos.convert import generate_to_proto
from baton.protos.errors import StaleEpochError
from baton.protos.types import GenerateRequest, SamplingParams

log = logging.getLogger(__name__)

# How long a worker that is to lend may take to connect.
_CONNECT_WAIT_S: Final = 1.0

Send = Callable[[pb.PrefillMessage], None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Pull:
    """`then` is None once the prompt goes on, with or without the prefix. `begun`: the other worker
    is connected. `session` is there while it may write: the blocks stay out of use until it says
    that it does not.
    """

    pull_id: str
    owner: PeerKey
    request: GenerateRequest
    then: Callable[[int], None] | None
    timer: asyncio.TimerHandle
    begun: bool = False
    session: ReceiveSession | None = None
    num_cached_tokens: int = 0
    num_lent_tokens: int | None = None


class PrefixPulls:
    """All pulls of one worker. Belongs to one event loop.

    num_pulled_tokens, num_failed: since the start. A pull fails when it brings nothing though there
    was room for it; one that finds everything here already is none.
    """

    def __init__(self, host: WorkerHost) -> None:
        self._host = host
        self._timeout_s = host.config.pull_timeout_s
        self._lease_s = host.config.lease_s
        self._block_size = host.config.engine.block_size
        self._streams: dict[str, tuple[PeerKey, Send]] = {}
        self._pulls: dict[str, _Pull] = {}
        self._names = itertools.count(1)
        self.num_pulled_tokens = 0
        self.num_failed = 0

    def __len__(self) -> int:
        """Pulls that are under way, or whose blocks may still be written to."""
        return len(self._pulls)

    def connected(self, key: PeerKey, send: Send) -> None:
        """A worker's stream stands; with it, all writes of its older ones have ended."""
        self._streams[key.agent] = (key, send)
        for pull in list(self._pulls.values()):
            if pull.owner.agent == key.agent and not pull.begun:
                self._begin(pull, key, send)
            elif pull.owner.agent == key.agent and pull.owner.session < key.session:
                self._fail(pull, "its connection was replaced")
                self._free(pull.pull_id)

    def lost(self, key: PeerKey) -> None:
        """A stream is gone; blocks that it may have had written are free after `lease_s`."""
        if self._streams.get(key.agent, (None,))[0] == key:
            del self._streams[key.agent]
        for pull in list(self._pulls.values()):
            if pull.begun and pull.owner == key:
                self._fail(pull, f"{key.worker_id} is gone")
                self._host.events.call_later(self._lease_s, self._free, pull.pull_id)

    def fetch(self, request: GenerateRequest, source: str, then: Callable[[int], None]) -> None:
        """Brings what the worker `source` (a `PeerKey.agent`) has cached of the prompt and this one
        has not; then `then`, exactly once, with the tokens that came.

        A worker that is not connected yet has been told to connect, and has a moment for it.
        """
        pull_id = f"pull-{next(self._names)}"
        prefix = GenerateRequest(
            request_id=pull_id,
            prompt_token_ids=[*request.prompt_token_ids, *request.output_token_ids],
            sampling=SamplingParams(),
            cache_salt=request.cache_salt,
            adapter_id=request.adapter_id,
        )
        owner = PeerKey.parse(source)
        wait_s = min(_CONNECT_WAIT_S, self._timeout_s)
        timer = self._host.events.call_later(wait_s, self._unconnected, pull_id)
        pull = _Pull(pull_id=pull_id, owner=owner, request=prefix, then=then, timer=timer)
        self._pulls[pull_id] = pull
        if owner.agent in self._streams:
            self._begin(pull, *self._streams[owner.agent])

    def on_lent(self, key: PeerKey, message: pb.Lent) -> None:
        """So many of the prompt's tokens are written, or were here."""
        pull = self._of(key, message.request_id)
        if pull is not None and pull.session is not None:
            most = pull.session.num_blocks * self._block_size
            pull.num_lent_tokens = min(message.num_tokens, most) // self._block_size
            pull.num_lent_tokens *= self._block_size
            self._finish_if_complete(pull)

    def on_notice(self, key: PeerKey, notice: Notice) -> None:
        """Blocks have arrived. A notice that no pull expects means nothing."""
        pull = self._of(key, notice.request_id)
        if pull is None or pull.session is None or pull.then is None:
            return
        try:
            pull.session.prove(notice)
        except StaleEpochError as error:
            self._fail(pull, error.message)
            return
        self._finish_if_complete(pull)

    def on_released(self, key: PeerKey, pull_id: str) -> None:
        """The other worker writes no more for that pull. Its notices may still be on their way."""
        pull = self._of(key, pull_id)
        if pull is not None:
            wait_s = NOTICE_GRACE_S if pull.then is not None else 0.0
            self._host.events.call_later(wait_s, self._end_unproved, pull)

    def _begin(self, pull: _Pull, key: PeerKey, send: Send) -> None:
        pull.begun, pull.owner = True, key
        late = f"it took longer than {self._timeout_s:g} s"
        pull.timer.cancel()
        pull.timer = self._host.events.call_later(self._timeout_s, self._fail, pull, late)
        pull_id, prefix = pull.pull_id, pull.request
        borrow = self._host.loop.call_recalled
        taken = borrow(prefix, lambda engine: engine.borrow(pull_id, prefix))
        asyncio.wrap_future(taken).add_done_callback(partial(self._on_borrowed, pull, send))

    def _unconnected(self, pull_id: str) -> None:
        self._fail(self._pulls[pull_id], "it is not connected")
        self._free(pull_id)

    def _of(self, key: PeerKey, pull_id: str) -> _Pull | None:
        pull = self._pulls.get(pull_id)
        return pull if pull is not None and pull.owner.agent == key.agent else None

    def _on_borrowed(
        self, pull: _Pull, send: Send, done: asyncio.Future[Reservation | None]
    ) -> None:
        failed = done.cancelled() or done.exception() is not None
        reservation = None if failed else done.result()
        if reservation is None or pull.then is None:
            # Nothing is missing here, or there is no room; or it was given up meanwhile.
            self._go_on(pull, 0)
            self._free(pull.pull_id)
            return
        pull.num_cached_tokens = reservation.num_cached_tokens
        pull.session, target = granted(reservation, self._block_size)
        self._host.connector.expect(1)
        prefix = generate_to_proto(pull.request)
        send(pb.PrefillMessage(pull=pb.Pull(prefix=prefix, reservation=target)))

    def _finish_if_complete(self, pull: _Pull) -> None:
        session, num_tokens = pull.session, pull.num_lent_tokens
        if session is None or num_tokens is None or pull.then is None:
            return
        if not session.has_leading(num_tokens // self._block_size):
            return
        num_new = max(num_tokens - pull.num_cached_tokens, 0)
        if not num_new:
            self._fail(pull, f"{pull.owner.worker_id} has no more of it than is here")
        self.num_pulled_tokens += num_new
        # Kept before the prompt is given to the engine, which takes calls in order.
        self._free(pull.pull_id, session.epoch, num_tokens if num_new else 0)
        self._go_on(pull, num_new)

    def _fail(self, pull: _Pull, reason: str) -> None:
        """The prompt goes on without it; the blocks wait until nobody writes to them."""
        if pull.then is not None:
            log.warning("no prefix from %s: %s", pull.owner, reason)
            self.num_failed += 1
            self._go_on(pull, 0)

    def _end_unproved(self, pull: _Pull) -> None:
        self._fail(pull, f"{pull.owner.worker_id} wrote everything, but not every notice came")
        self._free(pull.pull_id)

    def _go_on(self, pull: _Pull, num_tokens: int) -> None:
        then, pull.then = pull.then, None
        pull.timer.cancel()
        if then is not None:
            then(num_tokens)

    def _free(self, pull_id: str, epoch: int = 0, num_tokens: int = 0) -> None:
        pull = self._pulls.pop(pull_id, None)
        if pull is None:
            return
        if pull.session is not None:
            self._host.connector.expect(-1)
        self._host.loop.call(partial(_end_move, pull_id, epoch, num_tokens))


def _end_move(pull_id: str, epoch: int, num_tokens: int, engine: Engine) -> None:
    engine.end_move(pull_id, epoch, num_tokens=num_tokens)
