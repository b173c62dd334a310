"""How many real schemas each backend honours: right, refused, or silently wrong.

    python benchmarks/schema_coverage.py SAMPLE.jsonl [--output benchmarks/results/jsonschema.json]

A line of the sample is an object with `id`, `group`, `schema` and `tests`, each of these with
`valid` and `data` (the form of MaskBench, guidance-ai). Every test's document is fed to the
compiled grammar as JSON text: it must be accepted if and only if it is valid. `auto` is what a
request gets; the libraries alone are given the schema as it is, with their own defaults.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from baton.engine.grammar.choose import read_source, with_guidance
from baton.engine.grammar.guidance_backend import GuidanceVocabulary
from baton.protos.constraints import Grammar, GrammarKind
from baton.protos.errors import GrammarError
from benchmarks.results_file import percentiles, write_results

RESULTS: Final = Path(__file__).resolve().parent / "results" / "jsonschema.json"
Accepts = Callable[[str], bool]


class Auto:
    """As a request with backend `auto`."""

    def __init__(self) -> None:
        self.vocabulary = GuidanceVocabulary.of_bytes()

    def compile(self, schema: Any) -> Accepts:
        grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(schema))
        compiled = with_guidance(grammar, read_source(grammar), self.vocabulary)

        def accepts(text: str) -> bool:
            matcher = compiled.matcher()
            tokens = self.vocabulary.tokenizer.tokenize_str(text)
            return all(matcher.accept(token) for token in tokens) and matcher.can_end()

        return accepts


class GuidanceAlone:
    """llguidance's defaults."""

    def __init__(self) -> None:
        self.tokenizer = GuidanceVocabulary.of_bytes().tokenizer

    def compile(self, schema: Any) -> Accepts:
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())

        def accepts(text: str) -> bool:
            matcher.reset()
            tokens = self.tokenizer.tokenize_str(text)
            return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

        return accepts


class XgrammarAlone:
    """xgrammar's defaults, but for strict mode, which forbids what schemas leave open."""

    def __init__(self) -> None:
        import xgrammar

        words = [chr(byte).encode("latin-1") for byte in range(256)] + [b"<eos>"]
        info = xgrammar.TokenizerInfo(words, stop_token_ids=[256])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema: Any) -> Accepts:
        import xgrammar

        try:
            compiled = self.compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        except RuntimeError as error:
            raise GrammarError(str(error)) from error

        def accepts(text: str) -> bool:
            matcher = xgrammar.GrammarMatcher(compiled)
            return bool(matcher.accept_string(text)) and bool(matcher.is_completed())

        return accepts


BACKENDS: Final = {"auto": Auto, "guidance": GuidanceAlone, "xgrammar": XgrammarAlone}


def judge(accepts: Accepts, tests: list[dict[str, Any]]) -> str:
    """right, wrong (an invalid document is accepted) or narrow (a valid one is not)."""
    verdict = "right"
    for test in tests:
        accepted = accepts(json.dumps(test["data"], ensure_ascii=False))
        if accepted and not test["valid"]:
            return "wrong"
        if test["valid"] and not accepted:
            verdict = "narrow"
    return verdict


def survey(name: str, schemas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each group, and one for all of them."""
    backend = BACKENDS[name]()
    verdicts: dict[str, list[str]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for schema in schemas:
        started_s = time.perf_counter()
        try:
            accepts = backend.compile(schema["schema"])
        except GrammarError:
            verdict = "refused"
        else:
            verdict = ""
        took_s = time.perf_counter() - started_s
        verdict = verdict or judge(accepts, schema["tests"])
        for group in ("all", schema["group"]):
            verdicts[group].append(verdict)
            seconds[group].append(took_s)
    return [
        {
            "backend": name,
            "group": group,
            "schemas": len(found),
            **{word: found.count(word) for word in ("right", "wrong", "narrow", "refused")},
            "right_share": round(found.count("right") / len(found), 4),
            "compile_s": percentiles(seconds[group]) | {"max": round(max(seconds[group]), 4)},
        }
        for group, found in sorted(verdicts.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS))
    arguments = parser.parse_args()
    with arguments.sample.open(encoding="utf-8") as lines:
        schemas = [json.loads(line) for line in lines]
    rows = [row for name in arguments.backends for row in survey(name, schemas)]
    for row in rows:
        if row["group"] == "all":
            print(json.dumps(row))
    write_results(arguments.output, rows, {"sample": arguments.sample.name})


if __name__ == "__main__":
    main()
