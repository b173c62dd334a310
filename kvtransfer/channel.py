"""The seam between a link and what its data goes by: a communicator, or objects that both reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch

from baton.kvtransfer.frames import Greeting


class Channel(Protocol):
    """One end; belongs to one thread. What goes wrong is a RuntimeError, OSError or BatonError."""

    def send(self, chunks: Iterator[torch.Tensor]) -> None:
        """Sends each chunk, contiguous. Returns when their memory may be used again."""
        ...

    def receive(self, chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Fills each chunk, cut as the sender's, and yields it."""
        ...


class Offer(NamedTuple):
    """A sender's side of a channel that is being made: what the receiver must know to find it, and
    how to go on once it does."""

    rendezvous: str
    open: Callable[[], Channel]


class Channels(Protocol):
    """Makes the channels of one pool. From any thread.

    name: pools exchange KV only if theirs are equal. advice: said where they are not.
    """

    name: str
    advice: str

    def offer(self) -> Offer: ...

    def accept(self, greeting: Greeting) -> Channel:
        """The receiver's end, after it has let the sender know that it was greeted."""
        ...
