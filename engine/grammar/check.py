"""Which backend honours a schema, without a model: what `baton schema check` says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from baton.engine.grammar.choose import for_xgrammar, read_source, with_guidance
from baton.engine.grammar.guidance_backend import GuidanceVocabulary
from baton.engine.grammar.schema.document import Schema
from baton.engine.grammar.schema.rewrite import drop_annotations, rewrite
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.errors import GrammarError

_SEVERAL: Final = re.compile(r"no backend enforces (\[.*?\])")
_SINGLE: Final = re.compile(r"does not enforce '([\w$]+)' at")
# What maps names that are no keywords.
_TABLES: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a backend honours all of a schema; if not, why, and all keywords that it cannot, as
    far as each one's refusal names it.
    """

    backend: GrammarBackend
    honoured: bool
    reason: str = ""
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaCheck:
    """`auto`: who a request gets; None if it is refused. `rewritten`: keywords that are said by
    others, because no backend knows them."""

    auto: GrammarBackend | None
    verdicts: tuple[Verdict, ...]
    rewritten: tuple[str, ...] = ()


def check_schema(text: str) -> SchemaCheck:
    """Raises GrammarError for a text that is no schema."""
    grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, source=text)
    grammar.validate()
    source = read_source(grammar)
    vocabulary = GuidanceVocabulary.of_bytes()
    guidance = replace(grammar, backend=GrammarBackend.GUIDANCE)
    verdicts = (
        _verdict(GrammarBackend.GUIDANCE, source, lambda s: with_guidance(guidance, s, vocabulary)),
        _verdict(
            GrammarBackend.XGRAMMAR, source, lambda s: for_xgrammar(GrammarKind.JSON_SCHEMA, s)
        ),
    )
    honours = verdicts[0].honoured
    return SchemaCheck(
        auto=GrammarBackend.GUIDANCE if honours else None,
        verdicts=verdicts,
        rewritten=_rewritten_keywords(source, vocabulary) if honours else (),
    )


def _verdict(
    backend: GrammarBackend, source: Schema, attempt: Callable[[Schema], object]
) -> Verdict:
    """Tries again without the keywords that are refused, until none is."""
    reason, keywords = "", set[str]()
    while True:
        try:
            attempt(_without(source, keywords))
        except GrammarError as error:
            reason = reason or error.message
            named = _named(error.message) - keywords
        else:
            named = set()
        if not named:
            return Verdict(
                backend=backend,
                honoured=not reason,
                reason=reason,
                keywords=tuple(sorted(keywords)),
            )
        keywords |= named


def _named(message: str) -> set[str]:
    """The keywords that a refusal names."""
    several = _SEVERAL.search(message)
    single = _SINGLE.search(message)
    return {*(json.loads(several[1]) if several else ()), *([single[1]] if single else ())}


def _without(schema: Schema, keywords: set[str]) -> Schema:
    if isinstance(schema, list):
        return [_without(part, keywords) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without(part, keywords) for name, part in value.items()}
        if key in _TABLES and isinstance(value, dict)
        else value
        if key in ("enum", "const")
        else _without(value, keywords)
        for key, value in schema.items()
        if key not in keywords
    }


def _rewritten_keywords(source: Any, vocabulary: GuidanceVocabulary) -> tuple[str, ...]:
    from baton.engine.grammar.guidance_backend import compile_guidance

    try:
        schema = drop_annotations(source)
        compile_guidance(GrammarKind.JSON_SCHEMA, schema, vocabulary, whitespace=True)
    except GrammarError:
        before, after = (_keys(value) for value in (source, rewrite(source)))
        return tuple(sorted(before - after))
    return ()


def _keys(schema: Any) -> set[str]:
    found: set[str] = set()
    json.loads(
        json.dumps(schema), object_pairs_hook=lambda pairs: found.update(k for k, _ in pairs)
    )
    return found
