"""xgrammar and the process around its compiler, which may hang or crash."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.grammar.answering import ask, make_engine, run

from baton.engine.grammar.native_process import NativeProcess
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.errors import BatonError, GrammarError, UnavailableError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeProcess]:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'src'}")
    process = NativeProcess("tests.engine.grammar.child", ["works"])
    yield process
    process.close()


def test_a_child_that_hangs_or_crashes_is_replaced(child: NativeProcess) -> None:
    assert child.ask("hello", 60.0) == "hello"
    with pytest.raises(GrammarError, match="no"):
        child.ask("refuse", 60.0)
    with pytest.raises(GrammarError, match=r"more than 0\.2 s"):
        child.ask("hang", 0.2)
    assert child.ask("again", 60.0) == "again"
    with pytest.raises(GrammarError, match="crash"):
        child.ask("crash", 60.0)
    assert child.ask("and again", 60.0) == "and again"


def test_closing_ends_whoever_asks(child: NativeProcess) -> None:
    assert child.ask("hello", 60.0) == "hello"
    refused: list[BatonError] = []

    def wait() -> None:
        with pytest.raises((GrammarError, UnavailableError)) as caught:
            child.ask("hang", 100.0)
        refused.append(caught.value)

    asking = threading.Thread(target=wait)
    asking.start()
    while not child._lock.locked():
        time.sleep(0.01)
    child.close()
    asking.join(60)
    assert refused
    with pytest.raises(UnavailableError):
        child.ask("hello", 1.0)


def test_a_child_that_cannot_start_is_nobodys_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'src'}")
    with pytest.raises(UnavailableError, match="could not start"):
        NativeProcess("tests.engine.grammar.child", ["broken"]).ask("hello", 1.0)


EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<tool_call>",
        "content": {"type": "json_schema", "json_schema": {"enum": ["a", "b"]}},
        "end": "</tool_call>",
    },
}


@pytest.mark.timeout(400)
def test_xgrammar_answers() -> None:
    """One engine for all of it: its process takes long to start."""

    def made(kind: GrammarKind, source: str) -> Grammar:
        return Grammar(kind=kind, source=source, backend=GrammarBackend.XGRAMMAR)

    engine = make_engine()
    bad_tag = json.loads(json.dumps(TAG))
    bad_tag["format"]["content"]["json_schema"] = {"type": "string", "pattern": "x"}
    requests = {
        "ebnf": Grammar(
            kind=GrammarKind.EBNF, source='root ::= "ab" | "c" end\nend ::= "d" | "ef"'
        ),
        "tag": Grammar(kind=GrammarKind.STRUCTURAL_TAG, source=json.dumps(TAG)),
        "schema": made(GrammarKind.JSON_SCHEMA, json.dumps(EMPTY)),
        "choice": made(GrammarKind.CHOICE, '["red", "blue"]'),
        "bad rule": Grammar(kind=GrammarKind.EBNF, source="root ::= nothing"),
        "bad tag": Grammar(kind=GrammarKind.STRUCTURAL_TAG, source=json.dumps(bad_tag)),
        "bad schema": made(GrammarKind.JSON_SCHEMA, '{"not": {}}'),
    }
    try:
        answers = run(engine, [ask(name, grammar) for name, grammar in requests.items()], 350)
    finally:
        engine.close()
    assert re.fullmatch("ab|c(d|ef)", answers["ebnf"].text)
    assert re.fullmatch('<tool_call>"[ab]"</tool_call>', answers["tag"].text)
    assert json.loads(answers["schema"].text) == {}
    assert answers["choice"].text in ("red", "blue")
    for name in ("ebnf", "tag", "schema", "choice"):
        end = answers[name].end
        assert end is not None
        assert end.grammar_backend == "xgrammar"
    for name, named in (("bad rule", "nothing"), ("bad tag", "'pattern'"), ("bad schema", "'not'")):
        end = answers[name].end
        assert end is not None
        assert isinstance(end.error, GrammarError)
        assert named in end.error.message
