"""What a request demands of its output's form, under the names of OpenAI and of vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from baton.gateway.openai_messages import StrictModel
from baton.protos.constraints import Grammar, GrammarBackend, GrammarKind
from baton.protos.errors import InvalidRequestError, UnprocessableError

_BACKENDS = {
    "auto": GrammarBackend.AUTO,
    "xgrammar": GrammarBackend.XGRAMMAR,
    "guidance": GrammarBackend.GUIDANCE,
    "llguidance": GrammarBackend.GUIDANCE,
}


class JsonSchemaFormat(StrictModel):
    """A named schema. `strict` or not, the answer follows it, or the schema is refused."""

    name: str = Field(min_length=1)
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """OpenAI's response_format, and vLLM's structural tags."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    # Of a structural tag: `format`, or in the older form `structures` and `triggers`.
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(StrictModel):
    """vLLM's structured_outputs: exactly one of the constraints."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    backend: str | None = None


class Demand(NamedTuple):
    """One constraint and the field that it came from."""

    param: str
    kind: GrammarKind
    source: str


class OutputFields(StrictModel):
    """The fields themselves, for a body to inherit."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    structural_tag: str | dict[str, Any] | None = None

    def output_grammar(self, outputs_name: str = "structured_outputs") -> Grammar | None:
        """What the answer must match; None for any text. Raises InvalidRequestError for a field
        that is wrong, UnprocessableError naming two that exclude each other. `outputs_name`: what
        the request calls structured_outputs.
        """
        demands = [*self._demands(outputs_name)]
        outputs = self.structured_outputs
        backend = self._backend(outputs_name)
        if not demands:
            return None
        if len(demands) > 1:
            raise UnprocessableError(
                f"{demands[0].param} and {demands[1].param} both constrain the answer: give one",
                param=demands[1].param,
            )
        demand = demands[0]
        grammar = Grammar(
            kind=demand.kind,
            source=demand.source,
            backend=backend,
            whitespace=outputs is None or not outputs.disable_any_whitespace,
            param=demand.param,
        )
        grammar.validate()
        return grammar

    def _demands(self, prefix: str) -> Iterator[Demand]:
        if self.response_format is not None:
            yield from _response_format(self.response_format)
        outputs = self.structured_outputs
        if outputs is not None:
            yield from _constraints(
                {
                    f"{prefix}.json": outputs.json_,
                    f"{prefix}.regex": outputs.regex,
                    f"{prefix}.choice": outputs.choice,
                    f"{prefix}.grammar": outputs.grammar,
                    f"{prefix}.json_object": outputs.json_object or None,
                    f"{prefix}.structural_tag": outputs.structural_tag,
                }
            )
        yield from _constraints(
            {
                "guided_json": self.guided_json,
                "guided_regex": self.guided_regex,
                "guided_choice": self.guided_choice,
                "guided_grammar": self.guided_grammar,
                "structural_tag": self.structural_tag,
            }
        )

    def _backend(self, prefix: str) -> GrammarBackend:
        names = {"guided_decoding_backend": self.guided_decoding_backend}
        if self.structured_outputs is not None:
            names[f"{prefix}.backend"] = self.structured_outputs.backend
        given = {param: name for param, name in names.items() if name is not None}
        if len(set(given.values())) > 1:
            raise UnprocessableError(
                f"{' and '.join(given)} are {' and '.join(given.values())}: give one",
                param="guided_decoding_backend",
            )
        for param, name in given.items():
            if name not in _BACKENDS:
                raise InvalidRequestError(
                    f"{param} is {name[:40]!r}, but must be one of {', '.join(_BACKENDS)}",
                    param=param,
                )
            return _BACKENDS[name]
        return GrammarBackend.AUTO


def _response_format(wanted: ResponseFormat) -> Iterator[Demand]:
    param = "response_format"
    if wanted.type != "json_schema" and wanted.json_schema is not None:
        raise UnprocessableError(
            f"response_format has a json_schema, but its type is {wanted.type!r}: "
            "use the type 'json_schema' or leave json_schema out",
            param=f"{param}.json_schema",
        )
    if wanted.type == "json_object":
        yield Demand(param, GrammarKind.JSON_OBJECT, "")
    elif wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise InvalidRequestError(
                "response_format.json_schema is missing: give {'name': ..., 'schema': ...}",
                param=f"{param}.json_schema",
            )
        schema = wanted.json_schema.json_schema
        if schema is None:
            yield Demand(param, GrammarKind.JSON_OBJECT, "")
        else:
            yield Demand(f"{param}.json_schema.schema", GrammarKind.JSON_SCHEMA, dumps(schema))
    elif wanted.type == "structural_tag":
        yield Demand(param, GrammarKind.STRUCTURAL_TAG, _structural_tag(wanted))


def _structural_tag(wanted: ResponseFormat) -> str:
    if wanted.format is not None:
        return dumps({"type": "structural_tag", "format": wanted.format})
    if wanted.structures is None or wanted.triggers is None:
        raise InvalidRequestError(
            "response_format of the type 'structural_tag' needs a format, or structures and "
            "triggers",
            param="response_format",
        )
    return dumps(
        {
            "type": "structural_tag",
            "structures": wanted.structures,
            "triggers": wanted.triggers,
        }
    )


def _constraints(fields: Mapping[str, Any]) -> Iterator[Demand]:
    for param, value in fields.items():
        if value is not None:
            yield _demand(param, value)


def _demand(param: str, value: Any) -> Demand:
    """By the field's own name, which is the last part of `param`."""
    name = param.rpartition(".")[2].removeprefix("guided_")
    if name == "json_object":
        return Demand(param, GrammarKind.JSON_OBJECT, "")
    if name == "json":
        return Demand(param, GrammarKind.JSON_SCHEMA, _json_text(param, value))
    if name == "structural_tag":
        return Demand(param, GrammarKind.STRUCTURAL_TAG, _json_text(param, value))
    if name == "choice":
        if not value:
            raise InvalidRequestError(f"{param} is empty: give at least one text", param=param)
        return Demand(param, GrammarKind.CHOICE, dumps(value))
    if name == "regex":
        return Demand(param, GrammarKind.REGEX, value)
    kind = GrammarKind.EBNF if "::=" in value else GrammarKind.LARK
    return Demand(param, kind, value)


def _json_text(param: str, value: str | dict[str, Any]) -> str:
    if not isinstance(value, str):
        return dumps(value)
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{param} is not JSON: {error}", param=param) from error
    return value


def dumps(value: Any) -> str:
    """JSON with its characters as they are: sources are read and bounded as text."""
    return json.dumps(value, ensure_ascii=False)
