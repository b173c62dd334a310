"""Matching by llguidance: lazily built lexers, every cost bounded by its own limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from baton.engine.grammar.backend import Bitmask, fill_threads
from baton.protos.constraints import GrammarKind
from baton.protos.errors import GrammarError

_ONE_OF: Final = re.compile(r"oneOf constraints are not supported\..*", re.DOTALL)
_POINTER: Final = re.compile(r"Pointer '([^']*)' does not exist")
_REGEX_ERROR: Final = re.compile(r"regex parse error:.*\nerror: ([^\n]+)", re.DOTALL)
_IN_SCHEMA: Final = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")
_EXCERPT: Final = re.compile(r"\n\s*\d+ \| ")
# Bounded, so that a model that likes white space cannot fill its context with it.
WHITESPACE: Final = r"[\x20\x0A\x0D\x09]{1,20}"


class GuidanceMatcher:
    """One output's place in a grammar."""

    __slots__ = ("native",)

    def __init__(self, native: LLMatcher) -> None:
        self.native = native

    def accept(self, token_id: int) -> bool:
        # A token that does not fit would leave the native matcher in an error for good.
        return self.native.try_consume_tokens([token_id]) == 1

    def rollback(self, num_tokens: int) -> None:
        self.native.rollback(num_tokens)

    def can_end(self) -> bool:
        return self.native.is_accepting()

    def forced(self) -> Sequence[int]:
        return self.native.compute_ff_tokens()

    def error(self) -> str:
        return first_line(self.native.get_error()) if self.native.is_error() else ""


class GuidanceGrammar:
    """A compiled grammar: a matcher at its beginning, which copies share their lexer with."""

    backend = "guidance"

    def __init__(self, start: LLMatcher, filler: GuidanceFiller) -> None:
        self._start = start
        self.filler = filler

    def matcher(self) -> GuidanceMatcher:
        return GuidanceMatcher(self._start.deep_copy())


class GuidanceVocabulary:
    """The tokenizer, and the threads that fill masks, which all grammars share."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self.filler = GuidanceFiller()

    @classmethod
    def of(cls, path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> GuidanceVocabulary:
        """Of a model's tokenizer.json."""
        return cls(LLTokenizer(str(path), n_vocab=vocab_size, eos_token=list(eos_token_ids)))

    @classmethod
    def of_bytes(cls) -> GuidanceVocabulary:
        """A token for each byte: enough to see what is honoured, without a model."""
        return cls(LLTokenizer("byte"))


class GuidanceFiller:
    """Fills masks on llguidance's threads."""

    def __init__(self) -> None:
        self._executor = LLExecutor(num_threads=fill_threads())

    def fill(self, natives: Sequence[Any], bitmask: Bitmask, indices: Sequence[int]) -> None:
        pairs = list(zip(natives, indices, strict=True))
        num_rows, num_words = bitmask.shape
        self._executor.unsafe_compute_mask_ptr(pairs, bitmask.ctypes.data, 4 * num_words, num_rows)


def compile_guidance(
    kind: GrammarKind, source: Any, vocabulary: GuidanceVocabulary, *, whitespace: bool
) -> GuidanceGrammar:
    """Builds it. `source`: a schema as a Python value, choices as strings, or the text itself.

    Raises GrammarError with the library's reason.
    """
    matcher = LLMatcher(
        vocabulary.tokenizer,
        native_grammar(kind, source, whitespace=whitespace),
        log_level=0,
        # Half of the defaults: a step that comes near them delays every request of the batch.
        limits=LLParserLimits(max_items_in_row=1000, step_max_items=25_000, verbose_errors=False),
    )
    if matcher.is_error():
        problem = matcher.get_error()
        raise GrammarError(first_line(problem), reason=_reason_of(problem))
    return GuidanceGrammar(matcher, vocabulary.filler)


def native_grammar(kind: GrammarKind, source: Any, *, whitespace: bool) -> str:
    """The grammar as llguidance reads it. Raises GrammarError for kinds that it does not know."""
    if kind is GrammarKind.JSON_SCHEMA or kind is GrammarKind.JSON_OBJECT:
        options: Mapping[str, Any] = {"whitespace_flexible": False}
        if whitespace:
            options = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
        return LLMatcher.grammar_from_json_schema(json.dumps(source), overrides=options)  # type: ignore[arg-type]
    if kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(source)
    if kind is GrammarKind.CHOICE:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in source))
    if kind is GrammarKind.LARK:
        return LLMatcher.grammar_from_lark(source)
    raise GrammarError(
        f"guidance does not read a grammar of kind {kind}; xgrammar does", reason="unsupported"
    )


def _reason_of(problem: str) -> str:
    """The kind of a refusal, by the library's words."""
    words = problem.lower()
    if "unimplemented" in words or "not supported" in words:
        return "unsupported"
    if any(word in words for word in ("too many", "too large", "too complex", "limit")):
        return "too_complex"
    return "unmatchable" if "unsatisfiable" in words else "invalid"


def first_line(message: str) -> str:
    """The library's reason without its dump of states and its excerpt of the grammar, which a
    gateway may have written; regex errors span several lines.
    """
    regex = _REGEX_ERROR.search(message)
    if regex is not None:
        return f"invalid regular expression: {regex[1]}"
    head = _EXCERPT.split(message.split("<state>")[0])[0].replace("<non-verbose/>", "").strip()
    head = head.replace("Unimplemented keys:", "no backend enforces")
    head = _ONE_OF.sub('no backend enforces ["oneOf"] where more than one branch may fit', head)
    head = _POINTER.sub(r"the '$ref' '#\1' leads to no schema", head)
    head = _IN_SCHEMA.sub("in a JSON schema of it: ", head)
    # Its word for: no token may come, and this is no end.
    head = head.replace("NoExtensionBias", "nothing may come where something must")
    return " ".join(head.split())[:500]
