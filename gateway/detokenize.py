"""Tokens to text as they arrive: never part of a character, and in sum exactly the decoding of the
whole.

A byte-level or byte-fallback vocabulary is read once into a table of each token's bytes, so that a
push is a join and a UTF-8 decode (about 1.3 µs a token here; `tokenizers.DecodeStream` takes 1.5
µs, has no flush, and stalls behind bytes that never become a character). Other vocabularies decode
a sliding window.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence, Set
from typing import Protocol

from tokenizers import Tokenizer as HfTokenizer


class IncrementalText(Protocol):
    """One sequence's text. `push` returns what became certain; `finish` the rest (U+FFFD for half
    characters).
    """

    def push(self, token_ids: Sequence[int]) -> str: ...
    def finish(self) -> str: ...


class TableText:
    """IncrementalText over a table of bytes per token id; ids outside it are silent, as in the
    library.

    `strip_left` leading spaces are dropped, as SentencePiece vocabularies ask.
    """

    __slots__ = ("_pieces", "_rest", "_strip_left")

    def __init__(self, pieces: Sequence[bytes], *, strip_left: int = 0) -> None:
        self._pieces = pieces
        self._rest = b""
        self._strip_left = strip_left

    def push(self, token_ids: Sequence[int]) -> str:
        return self._decode(token_ids, final=False)

    def finish(self) -> str:
        return self._decode((), final=True)

    def _decode(self, token_ids: Sequence[int], *, final: bool) -> str:
        pieces = self._pieces
        try:
            data = self._rest + b"".join([pieces[i] for i in token_ids])
        except IndexError:
            data = self._rest + b"".join([pieces[i] for i in token_ids if i < len(pieces)])
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._rest = data[used:]
        return self._without_left_spaces(text) if self._strip_left and text else text

    def _without_left_spaces(self, text: str) -> str:
        stripped = text[: self._strip_left].lstrip(" ") + text[self._strip_left :]
        # Only leading spaces of the whole text go: the first other character ends the stripping.
        gone = len(text) - len(stripped)
        self._strip_left = self._strip_left - gone if gone == len(text) else 0
        return stripped


class WindowText:
    """IncrementalText for any decoder: decodes the tokens since the last certain text, with those
    before it. `hidden` tokens have no text.

    The window is two emissions wide, so the work per token does not grow with the sequence.
    """

    __slots__ = ("_hidden", "_ids", "_prefix", "_read", "_tokenizer")

    def __init__(self, tokenizer: HfTokenizer, *, hidden: Set[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._ids: list[int] = []
        # [prefix, read) is context whose text is out; [read, len) is not out yet.
        self._prefix = 0
        self._read = 0

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(i for i in token_ids if i not in self._hidden)
        before, after = self._texts()
        if after.endswith("\ufffd") or len(after) <= len(before):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        self._forget()
        return after[len(before) :]

    def finish(self) -> str:
        before, after = self._texts()
        self._prefix = self._read = len(self._ids)
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        context = self._ids[self._prefix : self._read]
        everything = self._ids[self._prefix :]
        decode = self._tokenizer.decode
        return (
            decode(context, skip_special_tokens=False),
            decode(everything, skip_special_tokens=False),
        )

    def _forget(self) -> None:
        del self._ids[: self._prefix]
        self._read -= self._prefix
        self._prefix = 0
