"""Which backend honours a schema, without a model: what `baton schema check` says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from baton.engine.grammar.backend import CompiledGrammar
from baton.engine.grammar.choose import for_xgrammar, read_source, with_guidance
from baton.engine.grammar.guidance_backend import GuidanceVocabulary
from baton.engine.grammar.schema.rewrite import drop_annotations, rewrite
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.errors import GrammarError


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a backend honours all of a schema; if not, the reason names the keyword."""

    backend: GrammarBackend
    honoured: bool
    reason: str = ""


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
        _verdict(GrammarBackend.GUIDANCE, lambda: with_guidance(guidance, source, vocabulary)),
        _verdict(GrammarBackend.XGRAMMAR, lambda: for_xgrammar(GrammarKind.JSON_SCHEMA, source)),
    )
    honours = verdicts[0].honoured
    return SchemaCheck(
        auto=GrammarBackend.GUIDANCE if honours else None,
        verdicts=verdicts,
        rewritten=_rewritten_keywords(source, vocabulary) if honours else (),
    )


def _verdict(
    backend: GrammarBackend, attempt: Callable[[], CompiledGrammar | tuple[str, str]]
) -> Verdict:
    try:
        attempt()
    except GrammarError as error:
        return Verdict(backend=backend, honoured=False, reason=error.message)
    return Verdict(backend=backend, honoured=True)


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
