"""Matching by xgrammar. Its native compiler has no limits, so it works in a process that can be
killed (`xgrammar_child`); compiled grammars come back serialized and are matched here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import xgrammar
from tokenizers import Tokenizer

from baton.engine.grammar.backend import Bitmask, fill_threads
from baton.engine.grammar.native_process import NativeProcess
from baton.protos.errors import GrammarError

# Masks that are filled one by one.
_FEW: Final = 32


class XgrammarMatcher:
    """One output's place in a grammar."""

    __slots__ = ("native",)

    def __init__(self, native: xgrammar.GrammarMatcher) -> None:
        self.native = native

    def accept(self, token_id: int) -> bool:
        return bool(self.native.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        self.native.rollback(num_tokens)

    def can_end(self) -> bool:
        return bool(self.native.is_completed())

    def forced(self) -> Sequence[int]:
        # It knows the text, but not a split into tokens that the model would make.
        return ()

    def error(self) -> str:
        return ""


class XgrammarGrammar:
    """A compiled grammar."""

    backend = "xgrammar"

    def __init__(self, compiled: xgrammar.CompiledGrammar, filler: XgrammarFiller) -> None:
        self._compiled = compiled
        self.filler = filler

    def matcher(self) -> XgrammarMatcher:
        return XgrammarMatcher(xgrammar.GrammarMatcher(self._compiled))


class XgrammarFiller:
    """Fills masks on xgrammar's threads, which it starts anew each time: few masks take longer so
    than one by one (on 16 cores 387 us where one takes 6)."""

    def __init__(self) -> None:
        self._batch = xgrammar.BatchGrammarMatcher(fill_threads())

    def fill(self, natives: Sequence[Any], bitmask: Bitmask, indices: Sequence[int]) -> None:
        if len(natives) < _FEW:
            for native, index in zip(natives, indices, strict=True):
                native.fill_next_token_bitmask(bitmask, index)
            return
        self._batch.batch_fill_next_token_bitmask(list(natives), bitmask, list(indices))


class XgrammarVocabulary:
    """The tokenizer, twice, the threads that fill masks, and the process that compiles.

    In text, special tokens do not exist; in a structural tag they are what they spell.
    """

    def __init__(self, path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._infos = {
            tags: tokenizer_info(path, vocab_size, eos_token_ids, tags) for tags in (False, True)
        }
        self._filler = XgrammarFiller()
        arguments = [str(path), str(vocab_size), json.dumps(eos_token_ids)]
        self._process = NativeProcess("baton.engine.grammar.xgrammar_child", arguments)

    def compile(
        self, kind: str, source: str, *, whitespace: bool, limit_s: float
    ) -> XgrammarGrammar:
        """`kind`: json_schema, regex, ebnf or structural_tag.

        Raises GrammarError with the library's reason, or after `limit_s`.
        """
        serialized = self._process.ask((kind, source, whitespace), limit_s)
        info = self._infos[kind == "structural_tag"]
        compiled = xgrammar.CompiledGrammar.deserialize_json(serialized, info)
        return XgrammarGrammar(compiled, self._filler)

    def close(self) -> None:
        self._process.close()


def tokenizer_info(
    path: Path, vocab_size: int, eos_token_ids: Sequence[int], tags: bool
) -> xgrammar.TokenizerInfo:
    """xgrammar's view of a tokenizer.json; `tags`: special tokens match as the text they show."""
    tokenizer = Tokenizer.from_file(str(path))
    words = [""] * vocab_size
    for word, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id < vocab_size:
            words[token_id] = word
    if not tags:
        for token_id, added in tokenizer.get_added_tokens_decoder().items():
            if added.special and token_id < vocab_size:
                words[token_id] = ""
    found = xgrammar.TokenizerInfo._detect_metadata_from_hf(tokenizer.to_str())
    return xgrammar.TokenizerInfo(
        words,
        found["vocab_type"],
        vocab_size=vocab_size,
        stop_token_ids=list(eos_token_ids),
        add_prefix_space=found["add_prefix_space"],
    )


def compile_text(
    compilers: dict[bool, xgrammar.GrammarCompiler], kind: str, source: str, whitespace: bool
) -> str:
    """In the child: the serialized grammar. Raises GrammarError."""
    compiler = compilers[kind == "structural_tag"]
    try:
        if kind == "json_schema":
            compiled = compiler.compile_json_schema(
                source,
                any_whitespace=whitespace,
                separators=None if whitespace else (",", ":"),
                # Else a key that the schema declares could come a second time, as another's.
                strict_mode=True,
                max_whitespace_cnt=20 if whitespace else None,
            )
        elif kind == "regex":
            compiled = compiler.compile_regex(source)
        elif kind == "ebnf":
            compiled = compiler.compile_grammar(source)
        else:
            compiled = compiler.compile_structural_tag(source)
    # Its errors have no common type but this one.
    except Exception as error:
        raise GrammarError(_reason(str(error))) from error
    return str(compiled.serialize_json())


def _reason(message: str) -> str:
    """Without the time and the source line that the library puts first."""
    text = re.sub(r"\[\d+:\d+:\d+\] \S+?:\d+: ", "", message)
    return " ".join(text.split())[:500]
