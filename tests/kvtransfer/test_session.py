"""Sessions, step by step and then as two machines joined by a channel that does its worst."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baton.kvtransfer.connector import Notice
from baton.kvtransfer.session import PushSpan, ReceiveSession, SendSession
from baton.protos.errors import PeerLostError, StaleEpochError, TransferError

BLOCK = 4


def blocks_of(span: PushSpan | None) -> range | None:
    if span is None:
        return None
    return range(span.notice.first_block, span.notice.first_block + span.notice.num_blocks)


def test_full_blocks_go_as_they_are_computed_and_the_rest_at_the_end() -> None:
    session = SendSession("r", num_tokens=11, block_size=BLOCK)
    session.advance(9, [50, 51, 52])
    assert session.next_push() is None, "where to write is not known yet"
    session.reserved(3, [90, 91, 92], first_block=1)
    first = session.next_push()
    assert first == PushSpan((51,), (91,), Notice("r", 3, 1, 1))
    assert session.next_push() is None
    session.advance(11, [50, 51, 52])
    last = session.next_push()
    assert last == PushSpan((52,), (92,), Notice("r", 3, 2, 1))
    assert first is not None
    assert last is not None
    session.push_done(last, None)
    assert not session.finished
    assert not session.safe_to_release
    session.push_done(first, None)
    assert session.finished
    assert session.safe_to_release


def test_nothing_to_send_is_finished_at_once() -> None:
    session = SendSession("r", num_tokens=8, block_size=BLOCK)
    assert not session.finished
    session.reserved(1, [5, 6], first_block=2)
    assert session.finished
    assert session.next_push() is None


def test_a_failed_push_stops_the_session_and_waits_for_the_others() -> None:
    session = SendSession("r", num_tokens=12, block_size=BLOCK)
    session.reserved(1, [5, 6, 7], first_block=0)
    session.advance(4, [1])
    first = session.next_push()
    session.advance(8, [1, 2])
    second = session.next_push()
    assert first is not None
    assert second is not None
    error = PeerLostError("gone")
    session.push_done(first, error)
    session.advance(12, [1, 2, 3])
    assert session.next_push() is None
    assert session.error is error
    assert not session.safe_to_release
    session.push_done(second, None)
    assert session.safe_to_release
    assert not session.finished
    with pytest.raises(TransferError, match="not in flight"):
        session.push_done(second, None)


def test_a_preemption_stops_the_session() -> None:
    for tokens, blocks in ((4, [1]), (8, [1, 9])):
        session = SendSession("r", num_tokens=12, block_size=BLOCK)
        session.reserved(1, [5, 6, 7], first_block=0)
        session.advance(8, [1, 2])
        session.advance(tokens, blocks)
        assert session.error is not None
        assert session.next_push() is None


def test_reservations_that_do_not_fit_are_refused() -> None:
    session = SendSession("r", num_tokens=12, block_size=BLOCK)
    with pytest.raises(TransferError, match="fills 3 blocks, but its reservation has 2"):
        session.reserved(1, [5, 6], first_block=0)
    with pytest.raises(TransferError, match="from 4 on"):
        session.reserved(1, [5, 6, 7], first_block=4)
    session.reserved(1, [5, 6, 7], first_block=0)
    with pytest.raises(TransferError, match="the reservation 1 already"):
        session.reserved(2, [5, 6, 7], first_block=0)


def test_a_reception_needs_every_block_and_the_token() -> None:
    session = ReceiveSession("r", epoch=3, first_block=1, num_blocks=4)
    session.prove(Notice("r", 3, 2, 2))
    session.prove(Notice("r", 3, 2, 2))
    session.first_token()
    assert not session.complete
    assert session.num_missing_blocks == 1
    session.prove(Notice("r", 3, 1, 1))
    assert session.complete


@pytest.mark.parametrize(
    "notice",
    [
        Notice("r", 2, 1, 3),
        Notice("other", 3, 1, 3),
        Notice("r", 3, 0, 2),
        Notice("r", 3, 3, 2),
        Notice("r", 3, 1, 0),
    ],
)
def test_foreign_and_stale_writes_prove_nothing(notice: Notice) -> None:
    session = ReceiveSession("r", epoch=3, first_block=1, num_blocks=4)
    with pytest.raises(StaleEpochError):
        session.prove(notice)
    assert session.num_missing_blocks == 3


class HandOver(RuleBasedStateMachine):
    """A sender, a wire whose writes end in any order or fail, and a channel of notices that loses,
    repeats, reorders and mixes in notices of an earlier epoch."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.num_tokens = data.draw(st.sampled_from([4, 15, 16, 31, 38]), "tokens")
        self.sender = SendSession("r", num_tokens=self.num_tokens, block_size=BLOCK)
        count = self.sender.num_blocks
        self.first_block = data.draw(st.sampled_from([0, 0, 1, count // 2]), "first")
        self.remote = [100 + i for i in range(count)]
        self.receiver = ReceiveSession("r", epoch=2, first_block=self.first_block, num_blocks=count)
        self.computed = 0
        self.reserved = False
        self.token_arrived = False
        self.stop_requested = False
        self.in_flight: list[PushSpan] = []
        self.written: set[int] = set()
        self.given: list[int] = []
        self.channel: list[Notice] = [Notice("r", 1, self.first_block, count)]
        if data.draw(st.booleans(), "reserved before anything is computed"):
            self.reserve()

    @precondition(lambda self: not self.reserved)
    @rule()
    def reserve(self) -> None:
        self.sender.reserved(2, self.remote, first_block=self.first_block)
        self.reserved = True
        self.post()

    @precondition(lambda self: self.computed < self.num_tokens)
    @rule(tokens=st.integers(1, 17))
    def compute(self, tokens: int) -> None:
        """A step of the engine. As in a worker, what it completed is posted at once."""
        self.computed = min(self.computed + tokens, self.num_tokens)
        # Every engine has allocated blocks ahead of what is computed.
        self.sender.advance(self.computed, list(range(self.sender.num_blocks)))
        self.post()

    def post(self) -> None:
        span = self.sender.next_push()
        if span is None:
            return
        blocks = blocks_of(span)
        assert blocks is not None
        assert not self.stop_requested
        assert list(span.local_blocks) == list(blocks)
        assert list(span.remote_blocks) == [100 + block for block in blocks]
        full = self.computed // BLOCK
        ready = self.sender.num_blocks if self.computed == self.num_tokens else full
        assert blocks.stop <= ready
        self.given.extend(blocks)
        self.in_flight.append(span)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), fails=st.integers(0, 9))
    def write_ends(self, data: st.DataObject, fails: int) -> None:
        span = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if fails == 0:
            self.stop_requested = True
            self.sender.push_done(span, PeerLostError("gone"))
            return
        self.written.update(blocks_of(span) or ())
        self.channel.append(span.notice)
        self.sender.push_done(span, None)

    @precondition(lambda self: self.channel)
    @rule(data=st.data(), fate=st.sampled_from(["arrives", "arrives", "arrives twice", "is lost"]))
    def notice(self, data: st.DataObject, fate: str) -> None:
        index = data.draw(st.integers(0, len(self.channel) - 1))
        notice = self.channel[index] if fate == "arrives twice" else self.channel.pop(index)
        if fate == "is lost":
            return
        if notice.epoch == self.receiver.epoch:
            self.receiver.prove(notice)
        else:
            with pytest.raises(StaleEpochError):
                self.receiver.prove(notice)

    @precondition(lambda self: self.computed == self.num_tokens)
    @rule()
    def first_token(self) -> None:
        self.token_arrived = True
        self.receiver.first_token()

    @precondition(lambda self: self.in_flight)
    @rule()
    def cancel(self) -> None:
        self.stop_requested = True
        self.sender.cancel()

    @invariant()
    def complete_only_with_everything(self) -> None:
        if self.receiver.complete:
            assert self.token_arrived
            assert self.written >= set(range(self.first_block, self.sender.num_blocks))

    @invariant()
    def never_released_while_in_flight(self) -> None:
        if self.in_flight:
            assert not self.sender.safe_to_release
            assert not self.sender.finished
        elif self.stop_requested:
            assert self.sender.safe_to_release

    @invariant()
    def every_block_is_given_once_in_order(self) -> None:
        assert self.given == list(range(self.first_block, self.first_block + len(self.given)))
        if self.sender.finished:
            assert self.written == set(range(self.first_block, self.sender.num_blocks))


TestHandOver = HandOver.TestCase
TestHandOver.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
