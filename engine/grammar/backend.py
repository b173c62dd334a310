"""The one interface over the libraries that match tokens against grammars."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# int32 [rows, ceil(vocab / 32)]; token t is bit t % 32 of word t // 32, 1: allowed.
Bitmask = npt.NDArray[np.int32]


class Matcher(Protocol):
    """Where one output is in its grammar. Not thread-safe.

    native: the library's own object, for batched fills.
    """

    @property
    def native(self) -> Any: ...

    def accept(self, token_id: int) -> bool:
        """Advances by a token; False, and no move, if the grammar forbids it."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Takes back the last accepted tokens."""
        ...

    def can_end(self) -> bool:
        """Whether what was accepted is a whole sentence of the grammar."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that spell the text which must come next, however else it could be split."""
        ...

    def error(self) -> str:
        """Why it can match no further, though it should; empty while all is well."""
        ...


class Filler(Protocol):
    """One library's way to fill many rows at once, on its own threads; shared by its grammars."""

    def fill(self, natives: Sequence[Any], bitmask: Bitmask, indices: Sequence[int]) -> None:
        """Writes row `indices[i]` of the bitmask from `natives[i]`."""
        ...


class CompiledGrammar(Protocol):
    """A grammar that any number of requests may share; `matcher` starts at its beginning.

    backend: who enforces it, for people.
    """

    @property
    def backend(self) -> str: ...

    @property
    def filler(self) -> Filler: ...

    def matcher(self) -> Matcher: ...


def fill_threads() -> int:
    """Threads of a library that fill masks: more take longer to wake than they save."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def has_token(words: npt.NDArray[np.int32], token_id: int) -> bool:
    """Whether a row of a bitmask allows the token."""
    return bool((int(words[token_id >> 5]) >> (token_id & 31)) & 1)


def allow(words: npt.NDArray[np.int32], token_id: int) -> None:
    """Sets the token's bit in a row of a bitmask."""
    words[token_id >> 5] |= np.uint32(1 << (token_id & 31)).view(np.int32)


def forbid(words: npt.NDArray[np.int32], token_id: int) -> None:
    """Clears the token's bit in a row of a bitmask."""
    words[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF).view(np.int32)
