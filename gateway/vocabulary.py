"""Each token's bytes, read from a tokenizer.json: what incremental text and logprobs are made of.

Byte-level vocabularies (GPT-2's scheme: Qwen, Llama 3, DeepSeek) write each byte as a printable
character; SentencePiece ones (Llama 2, Mistral, Gemma) write spaces as U+2581 and rare bytes as
<0xNN>.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip"}
# Letters, digits, accents, scripts, an emoji, blanks: decoding them both ways proves a table.
_PROBE = " Hé, 3 wörld!\n\tдж 你好 🙂  end"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Bytes by token id. `visible` has nothing for special tokens; `all` has their literal text.
    `added`: ids that stand for one literal text; `special` are those of them that answers leave
    out.
    """

    all: tuple[bytes, ...]
    visible: tuple[bytes, ...]
    added: frozenset[int]
    special: frozenset[int]
    strip_left: int
    # False: decoding cannot be done by concatenating bytes, use the library on windows.
    exact: bool

    @functools.cached_property
    def added_ids(self) -> dict[str, int]:
        """Ids of added tokens by their literal text."""
        return {self.all[i].decode(): i for i in self.added}

    @functools.cached_property
    def added_pattern(self) -> re.Pattern[str]:
        """Finds added tokens in text as a tokenizer does, the longer first; one group."""
        literals = sorted(self.added_ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, literals))})" if literals else "((?!))")

    def showing(self, markers: Sequence[str]) -> Vocabulary:
        """The same with special tokens visible that are part of a marker: parsers look for them."""
        shown = {i for i in self.special if any(self.all[i].decode() in m for m in markers)}
        visible = tuple(
            self.all[i] if i in shown else piece for i, piece in enumerate(self.visible)
        )
        return replace(self, visible=visible, special=self.special - shown)


def read_vocabulary(tokenizer: HfTokenizer) -> Vocabulary:
    """Builds the table of every id that `tokenizer` knows; gaps are empty."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    to_bytes = _byte_level_reader() if _is_byte_level(decoder) else _piece_to_bytes
    added = tokenizer.get_added_tokens_decoder()
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(tokens.values(), default=-1) + 1)
    for token, token_id in tokens.items():
        pieces[token_id] = token.encode() if token_id in added else to_bytes(token)
    special = frozenset(i for i, token in added.items() if token.special)
    table = Vocabulary(
        all=tuple(pieces),
        visible=tuple(b"" if i in special else piece for i, piece in enumerate(pieces)),
        added=frozenset(added),
        special=special,
        strip_left=_strip_left(decoder),
        exact=True,
    )
    return (
        table
        if _concatenates(decoder) and _agrees(tokenizer, table)
        else replace(table, exact=False)
    )


def _concatenates(decoder: dict[str, Any]) -> bool:
    """Whether the text is the tokens' bytes in a row, for all we know of this kind of decoder."""
    kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
    return _is_byte_level(decoder) or kinds == {"Metaspace"} or kinds <= _SENTENCEPIECE_STEPS


def _agrees(tokenizer: HfTokenizer, table: Vocabulary) -> bool:
    ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    text = b"".join(table.visible[i] for i in ids).decode("utf-8", "replace")
    for _ in range(table.strip_left):
        text = text.removeprefix(" ")
    return text == str(tokenizer.decode(ids, skip_special_tokens=True))


def _is_byte_level(decoder: dict[str, Any]) -> bool:
    steps = decoder.get("decoders", [decoder])
    return [step.get("type") for step in steps] == ["ByteLevel"]


def _strip_left(decoder: dict[str, Any]) -> int:
    if decoder.get("type") == "Metaspace":
        return 0 if decoder.get("prepend_scheme") == "never" else 1
    steps = decoder.get("decoders", [])
    if {step.get("type") for step in steps} <= _SENTENCEPIECE_STEPS:
        return sum(int(step.get("start", 0)) for step in steps if step.get("type") == "Strip")
    return 0


def _piece_to_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_level_reader() -> Any:
    """Inverts GPT-2's byte alphabet: printable bytes stand for themselves, the others follow from
    U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})

    def to_bytes(token: str) -> bytes:
        try:
            return bytes([alphabet[c] for c in token])
        except KeyError:
            return token.encode()

    return to_bytes
