"""Gives others what is cached here of their prompts: the other end of `handover/pulls.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from baton.engine.engine import Engine
from baton.handover.host import WorkerHost
from baton.handover.push_meter import PushMeter
from baton.kvtransfer.connector import PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.session import PushSpan, SendSession
from baton.protos import worker_pb2 as pb
from baton.protos.clock import Clock
from baton.protos.convert import generate_from_proto
from baton.protos.errors import PeerLostError, TransferError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrower:
    """A connected worker that may pull: what its blocks are like, how to tell it something, and
    how to end its connection where the wire to it is lost.
    """

    key: PeerKey
    layout: KVLayout
    send: Callable[[pb.DecodeMessage], None]
    end: Callable[[str], None]


class PrefixLender:
    """All prefixes that one worker lends. Belongs to one event loop."""

    def __init__(self, host: WorkerHost, meter: PushMeter, clock: Clock) -> None:
        self._host = host
        self._meter = meter
        self._clock = clock
        self._num_lent = 0

    def __len__(self) -> int:
        """Prefixes that are being read."""
        return self._num_lent

    def lend(self, to: Borrower, message: pb.Pull) -> None:
        """Writes what is cached of the prompt, in slower tiers too, where the other says, and tells
        it how much that is; in the end, whatever happens, that nothing is written any more.
        """
        self._num_lent += 1
        prefix = generate_from_proto(message.prefix)
        # Two workers may use one name.
        move_id = f"{to.key}/{prefix.request_id}"
        lend = self._host.loop.call_recalled
        taken = lend(prefix, lambda engine: engine.lend(move_id, prefix))
        asyncio.wrap_future(taken).add_done_callback(
            partial(self._on_lent, to, message.reservation, move_id)
        )

    def _on_lent(
        self,
        to: Borrower,
        target: pb.Reservation,
        move_id: str,
        done: asyncio.Future[tuple[int, ...]],
    ) -> None:
        failed = done.cancelled() or done.exception() is not None
        blocks = () if failed else done.result()
        here, there = self._host.config.engine.block_size, to.layout.block_size
        # Whole blocks of the other: the rest it computes.
        num_blocks = min(len(blocks) * here // there, len(target.block_ids))
        num_tokens = num_blocks * there
        lent = pb.Lent(request_id=target.request_id, num_tokens=num_tokens)
        to.send(pb.DecodeMessage(lent=lent))
        session = SendSession(
            target.request_id, num_tokens=num_tokens, block_size=here, target_block_size=there
        )
        first = min(target.num_cached_tokens // there, num_blocks)
        session.reserved(target.epoch, target.block_ids, first_block=first)
        session.advance(num_tokens, blocks)
        span = session.next_push()
        if span is None:
            self._end(to, target.request_id, move_id)
            return
        ended = partial(self._pushed, to, span, move_id, self._clock.now_s())

        def on_done(error: TransferError | None) -> None:
            """On the connector's thread."""
            self._host.events.call_soon_threadsafe(ended, error)

        try:
            self._host.connector.push(
                to.key,
                span.local_blocks,
                span.remote_blocks,
                span.notice,
                on_done,
                skip_tokens=span.skip_tokens,
            )
        except TransferError as error:
            ended(error)

    def _pushed(
        self,
        to: Borrower,
        span: PushSpan,
        move_id: str,
        posted_s: float,
        error: TransferError | None,
    ) -> None:
        if error is None:
            num_bytes = len(span.remote_blocks) * to.layout.token_bytes * to.layout.block_size
            self._meter.observe(to.key.worker_id, num_bytes, self._clock.now_s() - posted_s)
        else:
            log.warning("a prefix did not get to %s: %s", to.key, error.message)
        self._end(to, span.notice.request_id, move_id)
        if isinstance(error, PeerLostError):
            to.end(error.message)

    def _end(self, to: Borrower, request_id: str, move_id: str) -> None:
        self._num_lent -= 1
        self._host.loop.call(partial(_end_move, move_id))
        to.send(pb.DecodeMessage(released=pb.Released(request_id=request_id)))


def _end_move(move_id: str, engine: Engine) -> None:
    engine.end_move(move_id)
