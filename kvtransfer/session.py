"""One request's hand-over as pure state: no IO, no threads, no time; one writer each.

`SendSession` (prefill side) turns the progress of a prompt into pushes. `ReceiveSession` (decode
side) collects proofs that the blocks of a reservation were written. What joins them may lose,
repeat and reorder everything: a reception is complete only when each of its blocks is proved for
its own epoch, and a sender's blocks (and, after a cancel, the receiver's) may be reused only when
nothing is in flight any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.kvtransfer.connector import Notice
from baton.protos.errors import StaleEpochError, TransferError


@dataclass(frozen=True, slots=True)
class PushSpan:
    """One push: what `Connector.push` takes. Block ids are pool indices of either side."""

    local_blocks: tuple[int, ...]
    remote_blocks: tuple[int, ...]
    notice: Notice
    skip_tokens: int = 0


class SendSession:
    """The prefill side of one request: which blocks are computed, posted, done.

    ```
    (new) -- reserved() --> open -- last push_done(ok) --> finished
      \\__ cancel() _________/ \\__ cancel(), push_done(error), progress goes back --> stopped
    ```
    `next_push()` gives work only in `open`. In `finished` and `stopped` nothing new starts; what
    is in flight ends through `push_done`, after which `safe_to_release` holds.
    """

    def __init__(
        self,
        request_id: str,
        *,
        num_tokens: int,
        block_size: int,
        target_block_size: int | None = None,
    ) -> None:
        """`num_tokens` is what will be computed in all: the prompt and any replayed output.

        `target_block_size` is the receiver's, if it is another one. `num_blocks` and all that a
        `Notice` says count the receiver's blocks.
        """
        self.request_id = request_id
        self.error: TransferError | None = None
        self._num_tokens = num_tokens
        self._block_size = block_size
        self._target_block_size = target_block_size or block_size
        self.num_blocks = -(-num_tokens // self._target_block_size)
        self._epoch: int | None = None
        self._remote_blocks: tuple[int, ...] = ()
        self._local_blocks: tuple[int, ...] = ()
        self._num_computed_tokens = 0
        self._next_block = 0
        self._in_flight: set[PushSpan] = set()
        self._cancelled = False

    def reserved(self, epoch: int, remote_blocks: Sequence[int], *, first_block: int) -> None:
        """The receiver said where to write; its blocks before `first_block` need nothing.

        Raises TransferError if the reservation has too few blocks, or if there was one before.
        """
        if self._epoch is not None:
            raise TransferError(
                f"request {self.request_id} has the reservation {self._epoch} already"
            )
        if len(remote_blocks) < self.num_blocks or not 0 <= first_block <= self.num_blocks:
            raise TransferError(
                f"request {self.request_id} fills {self.num_blocks} blocks, but its reservation has"
                f" {len(remote_blocks)}, to be written from {first_block} on"
            )
        self._epoch = epoch
        self._remote_blocks = tuple(remote_blocks)
        self._next_block = first_block

    def advance(self, num_computed_tokens: int, local_blocks: Sequence[int]) -> None:
        """Tokens `[0, num_computed_tokens)` have their KV in `local_blocks`, the request's whole
        list so far.

        Progress that goes back (a preemption) or moves blocks stops the session: data of pushes
        in flight may have changed under them, so the receiver must not trust this hand-over.
        `error` says so.
        """
        known = self._local_blocks
        if (
            num_computed_tokens < self._num_computed_tokens
            or tuple(local_blocks[: len(known)]) != known
        ):
            self._stop(
                TransferError(f"request {self.request_id} was preempted during its hand-over")
            )
            return
        self._num_computed_tokens = num_computed_tokens
        # The last one perhaps in part: only its computed tokens are read.
        self._local_blocks = tuple(local_blocks[: -(-num_computed_tokens // self._block_size)])

    def next_push(self) -> PushSpan | None:
        """The run of computed blocks that were not given yet, or None. The caller must post it."""
        end = self._num_ready_blocks
        if self._epoch is None or self.stopped or self._next_block >= end:
            return None
        first = self._next_block
        first_token = first * self._target_block_size
        end_token = min(end * self._target_block_size, self._num_tokens)
        span = PushSpan(
            self._local_blocks[first_token // self._block_size : -(-end_token // self._block_size)],
            self._remote_blocks[first:end],
            Notice(self.request_id, self._epoch, first, end - first),
            first_token % self._block_size,
        )
        self._next_block = end
        self._in_flight.add(span)
        return span

    def push_done(self, span: PushSpan, error: TransferError | None) -> None:
        """The push can no longer write. An error stops the session: the receiver recomputes."""
        if span not in self._in_flight:
            raise TransferError(f"{span.notice} of request {self.request_id} is not in flight")
        self._in_flight.remove(span)
        if error is not None:
            self._stop(error)

    def cancel(self) -> None:
        """No push starts from now on. Harmless in any state."""
        self._cancelled = True

    @property
    def is_reserved(self) -> bool:
        """The receiver said where to write."""
        return self._epoch is not None

    @property
    def stopped(self) -> bool:
        """Cancelled, or failed with `error`."""
        return self._cancelled or self.error is not None

    @property
    def finished(self) -> bool:
        """Every block that the receiver wanted was written."""
        everything_given = self._epoch is not None and self._next_block >= self.num_blocks
        return everything_given and not self._in_flight and self.error is None

    @property
    def safe_to_release(self) -> bool:
        """Nothing is in flight and nothing will start: both sides' blocks may be reused."""
        return not self._in_flight and (self.stopped or self.finished)

    @property
    def _num_ready_blocks(self) -> int:
        if self._num_computed_tokens >= self._num_tokens:
            return self.num_blocks
        return self._num_computed_tokens // self._target_block_size

    def _stop(self, error: TransferError) -> None:
        if self.error is None:
            self.error = error


class ReceiveSession:
    """The decode side of one reservation: which of its blocks are proved to be written."""

    def __init__(
        self,
        request_id: str,
        *,
        epoch: int,
        first_block: int,
        num_blocks: int,
        num_senders: int = 1,
    ) -> None:
        """Senders are to write blocks `[first_block, num_blocks)` of the request's list.

        Each of `num_senders` tensor-parallel ranks writes its heads of every block.
        """
        self.request_id = request_id
        self.epoch = epoch
        self.first_block = first_block
        self.num_blocks = num_blocks
        self._missing = [set(range(first_block, num_blocks)) for _ in range(num_senders)]
        self._has_first_token = False

    def prove(self, notice: Notice, *, sender: int = 0) -> None:
        """The blocks that `notice` names were written by that sender. Repeats are harmless.

        Raises StaleEpochError, and proves nothing, for another request, another epoch, or blocks
        that this reservation did not ask for.
        """
        if notice.request_id != self.request_id or notice.epoch != self.epoch:
            raise StaleEpochError(
                f"a write for request {notice.request_id} in epoch {notice.epoch} came to"
                f" request {self.request_id} in epoch {self.epoch}"
            )
        end = notice.first_block + notice.num_blocks
        if notice.num_blocks < 1 or notice.first_block < self.first_block or end > self.num_blocks:
            raise StaleEpochError(
                f"a write to blocks [{notice.first_block}, {end}) of request {self.request_id} is"
                f" outside its reservation [{self.first_block}, {self.num_blocks})"
            )
        self._missing[sender].difference_update(range(notice.first_block, end))

    def first_token(self) -> None:
        """The sender has finished the prompt, its sampled token is here. Repeats are harmless."""
        self._has_first_token = True

    def has_leading(self, num_blocks: int) -> bool:
        """Every block before number `num_blocks` is proved, whatever becomes of the others."""
        return not any(block < num_blocks for missing in self._missing for block in missing)

    @property
    def num_missing_blocks(self) -> int:
        """Blocks that not every sender is proved to have written."""
        return len(set().union(*self._missing))

    @property
    def complete(self) -> bool:
        """Every block is proved and the first token is here: the request may join the batch."""
        return self._has_first_token and not any(self._missing)
