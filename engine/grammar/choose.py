"""Which backend enforces a grammar, and how: nothing of it is ignored, by either of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from baton.engine.grammar.backend import CompiledGrammar, has_token
from baton.engine.grammar.endless import check_ends
from baton.engine.grammar.schema.document import Schema
from baton.engine.grammar.schema.embedded import change_embedded
from baton.engine.grammar.schema.finite import has_finite_document
from baton.engine.grammar.schema.plain import check_plain
from baton.engine.grammar.schema.rewrite import drop_annotations, rewrite
from baton.engine.grammar.vocabulary import Vocabulary
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.errors import GrammarError

if TYPE_CHECKING:
    from baton.engine.grammar.guidance_backend import GuidanceVocabulary

# Deeper values would end in the recursion of whoever reads them.
MAX_DEPTH: Final = 100

# What reads a kind as it is; the first one is what `auto` takes.
_READERS: Final = {
    GrammarKind.JSON_OBJECT: (GrammarBackend.GUIDANCE, GrammarBackend.XGRAMMAR),
    GrammarKind.JSON_SCHEMA: (GrammarBackend.GUIDANCE, GrammarBackend.XGRAMMAR),
    GrammarKind.REGEX: (GrammarBackend.GUIDANCE, GrammarBackend.XGRAMMAR),
    GrammarKind.CHOICE: (GrammarBackend.GUIDANCE, GrammarBackend.XGRAMMAR),
    GrammarKind.LARK: (GrammarBackend.GUIDANCE,),
    GrammarKind.EBNF: (GrammarBackend.XGRAMMAR,),
    GrammarKind.STRUCTURAL_TAG: (GrammarBackend.XGRAMMAR,),
}


def compile_grammar(grammar: Grammar, vocabulary: Vocabulary, *, limit_s: float) -> CompiledGrammar:
    """Compiles it with the backend that honours all of it.

    Raises GrammarError that says what is wrong, or which keyword nobody enforces.
    """
    grammar.validate()
    source = read_source(grammar)
    if grammar.kind in (GrammarKind.LARK, GrammarKind.EBNF):
        check_ends(grammar.kind, source)
    if backend_for(grammar) is GrammarBackend.GUIDANCE:
        compiled = with_guidance(grammar, source, vocabulary.guidance)
    else:
        kind, text = for_xgrammar(grammar.kind, source)
        compiled = vocabulary.xgrammar.compile(
            kind, text, whitespace=grammar.whitespace, limit_s=limit_s
        )
    _check_can_begin(compiled, vocabulary)
    return compiled


def backend_for(grammar: Grammar) -> GrammarBackend:
    """Who is to enforce it. Raises GrammarError if the one that was asked for cannot read it."""
    readers = _READERS[grammar.kind]
    if grammar.backend is GrammarBackend.AUTO:
        return readers[0]
    if grammar.backend not in readers:
        raise GrammarError(
            f"{grammar.backend} does not read a grammar of kind {grammar.kind}; {readers[0]} does",
            param=grammar.param,
            reason="unsupported",
        )
    return grammar.backend


def read_source(grammar: Grammar) -> Any:
    """The schema, choices or tag as a Python value; other kinds are their text."""
    match grammar.kind:
        case GrammarKind.JSON_OBJECT:
            return {"type": "object"}
        case GrammarKind.JSON_SCHEMA:
            schema = _read_json(grammar)
            if not isinstance(schema, dict | bool):
                raise GrammarError(f"a schema must be an object, not {_type_name(schema)}")
            if schema is False:
                raise GrammarError("no output can match the schema false", reason="unmatchable")
            return {} if schema is True else schema
        case GrammarKind.STRUCTURAL_TAG:
            return _read_json(grammar)
        case GrammarKind.CHOICE:
            choices = _read_json(grammar)
            if not isinstance(choices, list) or not choices:
                raise GrammarError("the choices must be an array of at least one string")
            if not all(isinstance(choice, str) for choice in choices):
                raise GrammarError("every choice must be a string")
            return choices
        case _:
            _check_brackets(grammar)
            return grammar.source


def with_guidance(grammar: Grammar, source: Any, vocabulary: GuidanceVocabulary) -> CompiledGrammar:
    """Compiles what llguidance reads. Raises GrammarError."""
    from baton.engine.grammar.guidance_backend import compile_guidance

    def compiled(change: Callable[[Schema], Schema]) -> CompiledGrammar:
        if grammar.kind is GrammarKind.JSON_SCHEMA:
            changed = change(source)
        elif grammar.kind is GrammarKind.LARK:
            changed = change_embedded(source, change)
        else:
            changed = source
        return compile_guidance(grammar.kind, changed, vocabulary, whitespace=grammar.whitespace)

    if grammar.kind is GrammarKind.JSON_SCHEMA:
        # No rewriting helps against this.
        _check_finite(source)
    try:
        return compiled(_checked)
    except GrammarError as refused:
        if grammar.kind not in (GrammarKind.JSON_SCHEMA, GrammarKind.LARK):
            raise
        # Only what it refuses is rewritten: its own reading is exact, and keeps to the letter.
        try:
            return compiled(rewrite)
        except GrammarError as error:
            # Something may refer to what is rewritten: the first refusal says what the matter is.
            if error.message.endswith("leads to no schema"):
                raise refused from error
            raise


def _checked(schema: Schema) -> Schema:
    _check_finite(schema)
    return drop_annotations(schema)


def _check_finite(schema: Schema) -> None:
    if not has_finite_document(schema):
        raise GrammarError(
            "no document can be finished: the schema's recursion has no base", reason="unmatchable"
        )


def for_xgrammar(kind: GrammarKind, source: Any) -> tuple[str, str]:
    """The kind that the compiling process knows, and its text."""
    match kind:
        case GrammarKind.JSON_OBJECT | GrammarKind.JSON_SCHEMA:
            check_plain(source)
            _checked(source)
            return "json_schema", json.dumps(source)
        case GrammarKind.STRUCTURAL_TAG:
            _check_tag_schemas(source)
            return "structural_tag", json.dumps(source)
        case GrammarKind.CHOICE:
            return "ebnf", "root ::= " + " | ".join(json.dumps(choice) for choice in source)
        case _:
            return kind.value, source


def _check_tag_schemas(tag: Any) -> None:
    """Raises GrammarError unless xgrammar enforces every schema in a structural tag, and every
    grammar in it can end.
    """
    if isinstance(tag, list):
        for part in tag:
            _check_tag_schemas(part)
    elif isinstance(tag, dict):
        for key, part in tag.items():
            if key in ("json_schema", "schema") and isinstance(part, dict | bool):
                check_plain(part)
            elif key == "grammar" and isinstance(part, str):
                check_ends(GrammarKind.EBNF, part)
            else:
                _check_tag_schemas(part)


def _read_json(grammar: Grammar) -> Any:
    _check_brackets(grammar)
    try:
        return json.loads(grammar.source, parse_constant=_no_constant)
    except ValueError as error:
        raise GrammarError(f"the {grammar.kind} is not JSON: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")


def _check_brackets(grammar: Grammar) -> None:
    """Every reader is recursive, so depth is bounded before any of them sees the text."""
    depth = deepest = 0
    for character in grammar.source:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise GrammarError(
            f"the {grammar.kind} nests brackets {deepest} deep, but at most {MAX_DEPTH} work",
            reason="too_complex",
        )


def _check_can_begin(compiled: CompiledGrammar, vocabulary: Vocabulary) -> None:
    """Raises GrammarError for a grammar that no output matches, or whose first step is too much.

    What the first step costs is paid here, and not by the engine's thread.
    """
    matcher = compiled.matcher()
    bitmask = np.zeros((1, -(-vocabulary.vocab_size // 32)), dtype=np.int32)
    compiled.filler.fill([matcher.native], bitmask, [0])
    problem = matcher.error()
    if not bitmask.any() or (problem and not matcher.can_end()):
        why = f": {problem}" if problem else ""
        raise GrammarError(f"no output can match it{why}", reason="unmatchable")
    first = next(
        (
            token_id
            for word in np.flatnonzero(bitmask[0])
            for token_id in _tokens(bitmask[0], word)
            if token_id not in vocabulary.eos_token_ids
        ),
        None,
    )
    if first is not None and not matcher.accept(first) and (problem := matcher.error()):
        raise GrammarError(f"it is too complex: {problem}", reason="too_complex")


def _tokens(words: npt.NDArray[np.int32], word: int) -> Iterator[int]:
    """The tokens that one word of a bitmask's row allows."""
    return (t for t in range(32 * word, 32 * word + 32) if has_token(words, t))


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
