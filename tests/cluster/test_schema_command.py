from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from baton.cluster.cli import baton
from baton.protos.errors import InvalidRequestError


def test_says_who_honours_a_schema() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}}}
    result = CliRunner().invoke(baton, ["schema", "check"], input=json.dumps(plain))
    assert result.exit_code == 0
    assert result.output == "auto: guidance\nguidance: honoured\nxgrammar: honoured\n"


def test_names_what_is_rewritten_and_what_is_refused() -> None:
    choice = {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    result = CliRunner().invoke(baton, ["schema", "check"], input=json.dumps(choice))
    assert result.exit_code == 0
    assert "said by other keywords: oneOf" in result.output
    assert "xgrammar does not enforce 'oneOf' at #" in result.output
    refused = {"type": "array", "uniqueItems": True}
    result = CliRunner().invoke(baton, ["schema", "check", "--json"], input=json.dumps(refused))
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert found["auto"] is None
    assert "uniqueItems" in found["backends"]["guidance"]["reason"]
    assert "uniqueItems" in found["backends"]["xgrammar"]["reason"]


def test_names_every_keyword_that_a_backend_cannot() -> None:
    wanted = {
        "type": "object",
        "properties": {
            "not": {"type": "array", "uniqueItems": True},
            "b": {"type": "string", "not": {"pattern": "x"}},
            "c": {"type": "array", "contains": {"const": 1}},
        },
    }
    result = CliRunner().invoke(baton, ["schema", "check"], input=json.dumps(wanted))
    assert result.exit_code == 1
    assert "guidance cannot: contains, not, uniqueItems\n" in result.output
    assert "xgrammar cannot: contains, not, uniqueItems\n" in result.output
    nowhere = {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}
    result = CliRunner().invoke(baton, ["schema", "check"], input=json.dumps(nowhere))
    assert result.output.count("'$ref' '#/$defs/b'") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"[1]", "an object"), (b"{", "not JSON"), (b"", "empty"), (b"\xff{}", "not UTF-8")],
)
def test_what_is_no_schema_is_refused(text: bytes, message: str) -> None:
    result = CliRunner().invoke(baton, ["schema", "check"], input=text)
    assert result.exit_code == 1
    assert isinstance(result.exception, InvalidRequestError)
    assert message in result.exception.message
