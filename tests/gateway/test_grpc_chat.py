"""Tools, thoughts and forms over gRPC: the same plans as over HTTP, in typed messages."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import says, tokenizer
from tests.gateway.test_grpc import serving

from baton.protos import public_pb2 as pb
from baton.protos.errors import GrammarError

SAID = (
    "<think>\nI need it.\n</think>\n\nSee:\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
)
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
WEATHER = pb.Tool(name="get_weather", description="w", parameters_json=SCHEMA)


def asking(**fields: Any) -> pb.GenerateRequest:
    messages = [pb.Message(role="user", content="hi")]
    return pb.GenerateRequest(chat=pb.Chat(messages=messages, **fields))


@pytest.mark.parametrize("per_chunk", [1, 100])
async def test_calls_and_thoughts(per_chunk: int) -> None:
    async with serving(FakeFleet(says(SAID), per_chunk=per_chunk)) as gateway:
        request = asking(tools=[WEATHER])
        whole = await gateway.stub.Generate(request)
        chunks = [chunk async for chunk in gateway.stub.GenerateStream(request)]
        (call,) = whole.tool_calls
        assert (call.name, json.loads(call.arguments_json)) == ("get_weather", {"city": "Paris"})
        assert call.id.startswith("call_")
        assert (whole.text.strip(), whole.reasoning) == ("See:", "I need it.")
        assert whole.finish_reason == chunks[-1].finish_reason == "tool_calls"
        assert whole.usage.reasoning_tokens == chunks[-1].usage.reasoning_tokens > 3
        pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
        assert [piece.name for piece in pieces if piece.id] == ["get_weather"]
        arguments = "".join(piece.arguments_json for piece in pieces)
        assert json.loads(arguments) == {"city": "Paris"}
        assert "".join(chunk.reasoning for chunk in chunks) == "I need it."
        assert "".join(chunk.text for chunk in chunks).strip() == "See:"
        quiet = await gateway.stub.Generate(asking(exclude_reasoning=True))
        assert quiet.reasoning == ""


async def test_what_the_model_is_shown() -> None:
    call = pb.ToolCall(id="c1", name="get_weather", arguments_json='{"city": "Paris"}')
    messages = [
        pb.Message(role="developer", content="Be brief."),
        pb.Message(role="user", content="hi"),
        pb.Message(role="assistant", tool_calls=[call], reasoning="I need it."),
        pb.Message(role="tool", tool_call_id="c1", content="grey"),
    ]
    async with serving(FakeFleet(says("x"))) as gateway:
        chat = pb.Chat(messages=messages, tools=[WEATHER], reasoning_effort="none")
        await gateway.stub.Generate(pb.GenerateRequest(chat=chat))
        ids = list(gateway.fleet.requests[0].prompt_token_ids)
        prompt = tokenizer().decode(ids)
        assert "Be brief." in prompt
        assert '"parameters": {"type": "object"' in prompt
        assert '{"name": "get_weather", "arguments": {"city": "Paris"}}' in prompt
        assert "I need it." in prompt
        assert prompt.endswith("<think>\n\n</think>\n\n")
        tokenized = await gateway.stub.Tokenize(pb.TokenizeRequest(chat=chat))
        assert list(tokenized.ids) == ids


@pytest.mark.parametrize(
    ("form", "kind", "source"),
    [
        (pb.Form(json_object=True), "json_object", ""),
        (pb.Form(json_schema=SCHEMA), "json_schema", SCHEMA),
        (pb.Form(regex="a+"), "regex", "a+"),
        (pb.Form(choice=pb.Choices(texts=["a", "b"])), "choice", '["a", "b"]'),
        (pb.Form(grammar='root ::= "a"'), "ebnf", 'root ::= "a"'),
        (pb.Form(structural_tag='{"format": {}}'), "structural_tag", '{"format": {}}'),
    ],
)
async def test_forms(form: pb.Form, kind: str, source: str) -> None:
    form.backend, form.compact = "guidance", True
    async with serving(FakeFleet(says("{}"))) as gateway:
        request = asking(thinking_token_budget=5)
        request.form.CopyFrom(form)
        await gateway.stub.Generate(request)
        await gateway.stub.Generate(pb.GenerateRequest(prompt="a", form=form))
        chat, prompt = gateway.fleet.requests
        assert chat.grammar is not None
        assert prompt.grammar is not None
        assert (prompt.grammar.kind, prompt.grammar.source) == (kind, source)
        assert chat.grammar.kind == kind
        assert (chat.grammar.backend, chat.grammar.whitespace) == ("guidance", False)
        assert chat.thought is not None
        assert chat.thought.budget == 4
        assert prompt.thought is None


async def test_a_required_call() -> None:
    choice = pb.ToolChoice(mode="required", names=["get_weather"])
    async with serving(FakeFleet(says(SAID))) as gateway:
        request = asking(tools=[WEATHER], tool_choice=choice, single_tool_call=True)
        await gateway.stub.Generate(request)
        grammar = gateway.fleet.requests[0].grammar
        assert grammar is not None
        assert "calls:  call \n" in grammar.source


def formed(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt="a", form=pb.Form(**fields))


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asking(tools=[pb.Tool(name="a b")]), "chat.tools[0].function.name"),
        (asking(tools=[pb.Tool(name="a", parameters_json="[]")]), "chat.tools[0].parameters_json"),
        (asking(tools=[WEATHER, WEATHER]), "tools"),
        (asking(tool_choice=pb.ToolChoice(mode="must")), "chat.tool_choice.mode"),
        (asking(tool_choice=pb.ToolChoice(mode="required")), "tool_choice"),
        (asking(reasoning_effort="huge"), "chat.reasoning_effort"),
        (asking(thinking_token_budget=-1), "chat.thinking_token_budget"),
        (formed(backend="xgrammar"), "form"),
        (formed(json_object=False), "form"),
        (formed(json_schema="{"), "form.json"),
        (formed(regex="a", backend="outlines"), "form.backend"),
        (formed(choice=pb.Choices()), "form.choice"),
    ],
)
async def test_refusals(request_: pb.GenerateRequest, param: str) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Generate(request_)
        trailing = caught.value.trailing_metadata()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert trailing["x-baton-error-param"] == param
        assert not gateway.fleet.requests


async def test_a_refusal_by_the_worker_is_an_invalid_argument() -> None:
    fleet = FakeFleet(says("x"))
    fleet.error = GrammarError("the schema recurses without an end", param="form.json")
    async with serving(fleet) as gateway:
        with pytest.raises(grpc.aio.AioRpcError, match="recurses") as caught:
            await gateway.stub.Generate(formed(json_schema=SCHEMA))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
