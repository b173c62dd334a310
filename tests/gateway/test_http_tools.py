"""Tool calls in chat answers: what the model is shown, what it must write, what clients get."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import Served, check, check_error, events, says, serving, tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = CALL + '\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a streamed answer, put together as clients do."""
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for piece in choice["delta"].get("tool_calls", ()):
                if piece["index"] not in calls:
                    assert set(piece) == {"index", "id", "type", "function"}
                    calls[piece["index"]] = {**piece, "function": dict(piece["function"])}
                else:
                    assert set(piece) == {"index", "function"}
                    assert set(piece["function"]) == {"arguments"}
                    function = calls[piece["index"]]["function"]
                    function["arguments"] += piece["function"]["arguments"]
    return [calls[i] for i in sorted(calls)]


async def calls_of(gateway: Served, stream: bool, **fields: Any) -> tuple[list[Any], str, Any]:
    """(name, arguments) of each call, the finish reason, and the content."""
    response = await gateway.chat(stream=stream, **fields)
    assert response.status_code == 200, response.text
    if stream:
        chunks = events(response.text)
        for chunk in chunks:
            check("CreateChatCompletionStreamResponse", chunk)
        calls, reason = joined(chunks), chunks[-1]["choices"][0]["finish_reason"]
        content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) or None
    else:
        document = response.json()
        check("CreateChatCompletionResponse", document)
        choice = document["choices"][0]
        calls, reason = choice["message"].get("tool_calls", []), choice["finish_reason"]
        content = choice["message"]["content"]
    assert all(call["id"].startswith("call_") for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    found = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
    return found, reason, content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("per_chunk", [1, 3, 100])
async def test_calls(stream: bool, per_chunk: int) -> None:
    async with serving(FakeFleet(says(f"Let me see.\n{TWO}"), per_chunk=per_chunk)) as gateway:
        calls, reason, content = await calls_of(gateway, stream, tools=[WEATHER, CLOCK])
        assert calls == [("get_weather", {"city": "Paris"}), ("clock", {})]
        assert reason == "tool_calls"
        assert content.strip() == "Let me see."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_alone_has_null_content_and_one_call_is_enough_if_asked(stream: bool) -> None:
    async with serving(FakeFleet(says(TWO), per_chunk=2)) as gateway:
        fields = {"tools": [WEATHER, CLOCK], "parallel_tool_calls": False}
        calls, reason, content = await calls_of(gateway, stream, **fields)
        assert calls == [("get_weather", {"city": "Paris"})]
        assert (reason, content) == ("tool_calls", None)


async def test_text_without_a_call_and_a_call_that_is_cut_off() -> None:
    async with serving(FakeFleet(says("It rains."))) as gateway:
        found = await calls_of(gateway, False, tools=[WEATHER])
        assert found == ([], "stop", "It rains.")
    async with serving(FakeFleet(says(CALL))) as gateway:
        response = await gateway.chat(tools=[WEATHER], max_tokens=8)
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert "tool_calls" not in choice["message"]


async def test_the_model_is_shown_the_tools_and_their_results() -> None:
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "grey"}'},
    ]
    async with serving(FakeFleet(says("Grey."))) as gateway:
        await gateway.chat(messages=messages, tools=[WEATHER, CLOCK])
        prompt = tokenizer().decode(list(gateway.fleet.requests[0].prompt_token_ids))
        assert '"name": "get_weather", "description": "Weather of a city"' in prompt
        assert '"name": "clock", "parameters": {"type": "object", "properties": {}}' in prompt
        assert "strict" not in prompt
        assert CALL in prompt
        assert '<tool_response>\n{"sky": "grey"}\n</tool_response>' in prompt
        as_object = json.loads(
            json.dumps(messages).replace('"{\\"city\\":\\"Paris\\"}"', '{"city": "Paris"}')
        )
        assert as_object != messages
        await gateway.chat(messages=as_object, tools=[WEATHER, CLOCK])
        first, second = gateway.fleet.requests
        assert list(first.prompt_token_ids) == list(second.prompt_token_ids)


@pytest.mark.parametrize("stream", [False, True])
async def test_none_shows_no_tools_and_drops_calls(stream: bool) -> None:
    async with serving(FakeFleet(says(f"No call. {CALL}"))) as gateway:
        found = await calls_of(gateway, stream, tools=[WEATHER], tool_choice="none")
        assert found == ([], "stop", "No call. ")
        prompt = tokenizer().decode(list(gateway.fleet.requests[0].prompt_token_ids))
        assert "get_weather" not in prompt


NAMED = {"type": "function", "function": {"name": "clock"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", ["get_weather", "clock"]), (NAMED, ["clock"]), (ALLOWED, ["clock"])],
)
async def test_a_required_call_is_constrained(choice: Any, names: list[str]) -> None:
    async with serving(FakeFleet(says(CALL))) as gateway:
        fields = {"tools": [WEATHER, CLOCK], "tool_choice": choice}
        _, reason, _ = await calls_of(gateway, False, **fields, parallel_tool_calls=False)
        assert reason == "tool_calls"
        (request,) = gateway.fleet.requests
        assert request.grammar is not None
        assert (request.grammar.kind, request.grammar.param) == ("lark", "tools")
        named = [json.dumps(f'\n{{"name": "{name}", "arguments": ') for name in names]
        ways = [f'<[5]> {begin} args_{i} "}}\\n" <[6]>' for i, begin in enumerate(named)]
        assert f"call: {' | '.join(ways)}" in request.grammar.source.splitlines()
        # The grammar holds after the thought, which this model may begin by itself.
        assert request.thought is not None
        assert (request.thought.start_ids, request.thought.end_ids) == ((3,), (4,))


async def test_strict_functions_hold_where_the_model_chooses() -> None:
    async with serving(FakeFleet(says(CALL))) as gateway:
        await gateway.chat(tools=[WEATHER, CLOCK])
        await gateway.chat(tools=[CLOCK])
        strict, free = gateway.fleet.requests
        assert strict.grammar is not None
        rules = strict.grammar.source.splitlines()
        assert rules[0] == "start: marked* TEXT"
        assert '"required": ["city"]' in rules[-2]
        assert rules[-1].startswith('args_1: %json {"type": "object", "x-guidance"')
        assert free.grammar is None
        assert free.thought is None


async def test_a_form_of_the_answer_beside_tools_is_either_one() -> None:
    async with serving(FakeFleet(says("{}"))) as gateway:
        await gateway.chat(tools=[CLOCK], response_format={"type": "json_object"})
        await gateway.chat(
            tools=[CLOCK], response_format={"type": "json_object"}, tool_choice="none"
        )
        either, alone = gateway.fleet.requests
        assert either.grammar is not None
        assert either.grammar.source.splitlines()[0].endswith("(calls | form)")
        assert alone.grammar is not None
        assert alone.grammar.kind == "json_object"


@pytest.mark.parametrize(("parser", "form"), [("llama3_json", None), ("hermes", "json_object")])
async def test_none_keeps_what_only_looks_like_a_call(parser: str, form: str | None) -> None:
    said = CALL if form else '{"name": "get_weather", "parameters": {}}'
    async with serving(FakeFleet(says(said)), tool_call_parser=parser) as gateway:
        more = {"response_format": {"type": form}} if form else {}
        found = await calls_of(gateway, False, tools=[CLOCK], tool_choice="none", **more)
        assert found == ([], "stop", said)


async def test_formats_without_a_grammar_are_required_as_json() -> None:
    said = '[{"name": "clock", "arguments": {}}]'
    async with serving(FakeFleet(says(said)), tool_call_parser="qwen3_coder") as gateway:
        fields = {"tools": [WEATHER, CLOCK], "tool_choice": "required"}
        calls, reason, content = await calls_of(gateway, True, **fields)
        assert (calls, reason, content) == ([("clock", {})], "tool_calls", None)
        grammar = gateway.fleet.requests[0].grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        error = check_error(
            await gateway.chat(tools=[CLOCK], guided_regex="a+"), 422, "guided_regex"
        )
        assert "'qwen3_coder'" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [CLOCK, CLOCK]}, "tools", "two functions of the name 'clock'"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice", "'required'"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice", "the tools are get_weather"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type", "function"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools.0.function.name",
            "letters",
        ),
        ({"functions": [CLOCK["function"]]}, "functions", "not supported yet"),
    ],
)
async def test_refusals(fields: dict[str, Any], param: str, message: str) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        error = check_error(await gateway.chat(**fields), 400, param)
        assert message in error["message"]
        assert not gateway.fleet.requests


async def test_without_a_parser_tools_are_refused() -> None:
    async with serving(FakeFleet(says("x")), tool_call_parser="none") as gateway:
        error = check_error(await gateway.chat(tools=[CLOCK]), 400, "tools")
        assert "--tool-call-parser" in error["message"]


@pytest.mark.parametrize("arguments", ["{", "[]", "1"])
async def test_arguments_sent_back_must_be_an_object(arguments: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    async with serving(FakeFleet(says("x"))) as gateway:
        error = check_error(await gateway.chat(messages=messages), 400, "messages")
        assert "'c1'" in error["message"]
