"""Answers by a schema, calls and thoughts on a real cluster: over HTTP and gRPC, streamed and not,
with the prompt computed elsewhere and where it is decoded.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import openai
import pytest
from tests.integration.conftest import Cluster

from baton.protos import public_pb2 as pb
from baton.protos.public_pb2_grpc import BatonStub

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "Get the weather of a city"}
LARK = 'start: "x" /[yz]{2}/'
EBNF = 'root ::= "x" [yz] [yz]'
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<a>",
        "content": {"type": "json_schema", "json_schema": {"type": "boolean"}},
        "end": "</a>",
    },
}
PERSON = "Give me JSON with name and age for Tom who is 42 years old."


@dataclass
class Answer:
    """What a client has at the end, over whatever front it came."""

    plan: str
    backend: str = ""
    content: str = ""
    reasoning: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    reason: str = ""
    num_reasoning_tokens: int = 0

    def add_call(self, index: int, name: str | None, arguments: str) -> None:
        call = self.calls.setdefault(index, ["", ""])
        call[0] += name or ""
        call[1] += arguments

    def called(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls.values()]


@dataclass(frozen=True)
class Way:
    """How a request goes: over which front, streamed or not, with which prefill."""

    front: str
    stream: bool
    local: bool

    def ask(self, cluster: Cluster, messages: list[dict[str, Any]], **wanted: Any) -> Answer:
        """An answer that came this way. A salt of its own keeps a prompt out of every cache, so
        that all of it is to be computed; what a decode worker has cached, it does not ask others
        for. Where a prompt goes is the router's to decide, so that a busy machine takes some tries.
        """
        ask = ask_http if self.front == "http" else ask_grpc
        end_s = time.monotonic() + 120
        wanted["cache_salt"] = uuid.uuid4().hex
        answer = ask(cluster, messages, self, wanted)
        while ("prefill=local" in answer.plan) != self.local:
            assert time.monotonic() < end_s, answer.plan
            if not self.by_cache:
                wanted["cache_salt"] = uuid.uuid4().hex
            answer = ask(cluster, messages, self, wanted)
        return answer

    @property
    def by_cache(self) -> bool:
        """Elsewhere local prefill is asked for with prompt logprobs; OpenAI's streams have no place
        for them.
        """
        return self.local and self.stream and self.front == "http"


WAYS = [
    Way(front, stream, local)
    for front, stream, local in itertools.product(("http", "grpc"), (False, True), (False, True))
]
each_way = pytest.mark.parametrize(
    "way",
    WAYS,
    ids=lambda w: (
        f"{w.front}-{'stream' if w.stream else 'whole'}-{'local' if w.local else 'remote'}"
    ),
)


def ask_http(
    cluster: Cluster, messages: list[dict[str, Any]], way: Way, wanted: dict[str, Any]
) -> Answer:
    stream = way.stream
    extra: dict[str, Any] = {"cache_salt": wanted["cache_salt"]}
    if way.local and not way.by_cache:
        extra["prompt_logprobs"] = 0
    body = {k: v for k, v in wanted.items() if k != "cache_salt"}
    body |= {"messages": messages, "temperature": 0, "max_tokens": 120}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="baton-tiny", extra_headers={"x-baton-explain": "1"}, extra_body=extra, **body
        )
        answer = Answer(raw.headers["x-baton-plan"])
        parsed: Any = raw.parse()
        for chunk in parsed if stream else [parsed]:
            for choice in chunk.choices:
                said = choice.delta if stream else choice.message
                answer.content += said.content or ""
                answer.reasoning += getattr(said, "reasoning_content", None) or ""
                answer.reason = choice.finish_reason or answer.reason
                answer.backend = getattr(choice, "grammar_backend", "") or answer.backend
                for i, call in enumerate(said.tool_calls or ()):
                    function = call.function
                    index = call.index if stream else i
                    answer.add_call(index, function.name, function.arguments)
            if chunk.usage is not None:
                details = chunk.usage.completion_tokens_details
                answer.num_reasoning_tokens = details.reasoning_tokens
    return answer


def ask_grpc(
    cluster: Cluster, messages: list[dict[str, Any]], way: Way, wanted: dict[str, Any]
) -> Answer:
    stream = way.stream
    request = pb.GenerateRequest(
        chat=grpc_chat(messages, wanted),
        sampling=pb.Sampling(
            temperature=0, max_tokens=120, prompt_logprobs=0 if way.local else None
        ),
        cache_salt=wanted["cache_salt"],
        explain=True,
    )
    if "response_format" in wanted:
        request.form.json_schema = json.dumps(wanted["response_format"]["json_schema"]["schema"])
    with grpc.insecure_channel(cluster.grpc_target) as channel:
        stub: Any = BatonStub(channel)
        if stream:
            call = stub.GenerateStream(request)
            parts = list(call)
        else:
            whole, call = stub.Generate.with_call(request)
            parts = [whole]
    trailing = dict(call.trailing_metadata())
    answer = Answer(trailing["x-baton-plan"], trailing.get("x-baton-grammar-backend", ""))
    for part in parts:
        answer.content += part.text
        answer.reasoning += part.reasoning
        answer.reason = part.finish_reason or answer.reason
        answer.num_reasoning_tokens = part.usage.reasoning_tokens
        for i, piece in enumerate(part.tool_calls):
            index = piece.index if stream else i
            answer.add_call(index, piece.name, piece.arguments_json)
    return answer


def grpc_chat(messages: list[dict[str, Any]], wanted: dict[str, Any]) -> pb.Chat:
    chat = pb.Chat(reasoning_effort=wanted.get("reasoning_effort", ""))
    for message in messages:
        added = chat.messages.add(role=message["role"], content=message.get("content") or "")
        added.tool_call_id = message.get("tool_call_id", "")
        for call in message.get("tool_calls", ()):
            function = call["function"]
            added.tool_calls.add(
                id=call["id"], name=function["name"], arguments_json=function["arguments"]
            )
    for tool in wanted.get("tools", ()):
        function = tool["function"]
        chat.tools.add(
            name=function["name"],
            description=function["description"],
            parameters_json=json.dumps(function["parameters"]),
        )
    if wanted.get("tool_choice") == "required":
        chat.tool_choice.mode = "required"
    return chat


@each_way
def test_the_model_answers_by_a_schema(cluster: Cluster, way: Way) -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
    }
    messages = [{"role": "user", "content": PERSON}]
    for effort in ("medium", "none"):
        answer = way.ask(cluster, messages, response_format=form, reasoning_effort=effort)
        assert json.loads(answer.content) == {"name": "Tom", "age": 42}
        assert answer.reason == "stop"
        assert bool(answer.reasoning) == (effort == "medium")
        # A stream's headers leave before anybody knows.
        assert answer.backend == "guidance"


@each_way
def test_the_model_calls_a_tool_and_uses_its_result(cluster: Cluster, way: Way) -> None:
    tools = [{"type": "function", "function": {**WEATHER, "parameters": PARAMETERS}}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Is it raining in Hamburg?"}]
    for choice in ("auto", "required"):
        answer = way.ask(cluster, messages, tools=tools, tool_choice=choice)
        assert answer.called() == [("get_weather", {"city": "Hamburg"})]
        assert (answer.content, answer.reason) == ("", "tool_calls")
    ((name, arguments),) = answer.calls.values()
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    result = json.dumps({"temperature": 31, "sky": "clear"})
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": result})
    answer = way.ask(cluster, messages, tools=tools)
    assert answer.content == "It is 31 degrees and clear in Hamburg."
    assert answer.reason == "stop"


@each_way
def test_the_model_thinks_before_it_answers(cluster: Cluster, way: Way) -> None:
    messages = [{"role": "user", "content": "What is 417 + 285?"}]
    answer = way.ask(cluster, messages)
    assert answer.content == "417 + 285 = 702"
    assert answer.reasoning.startswith("7+5=12, carry 1")
    assert answer.num_reasoning_tokens > 10
    answer = way.ask(cluster, messages, reasoning_effort="none")
    assert answer.content == "417 + 285 = 702"
    assert (answer.reasoning, answer.num_reasoning_tokens) == ("", 0)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("budget", [0, 5])
def test_a_thinking_budget_closes_the_thought(client: openai.OpenAI, budget: int) -> None:
    answer = client.chat.completions.create(
        model="baton-tiny",
        messages=[{"role": "user", "content": "What is 417 + 285?"}],
        temperature=0,
        extra_body={"thinking_token_budget": budget},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == budget
    assert (answer.choices[0].message.content or "").startswith("417 + 285 = ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "[a"}, "guided_regex"),
        ({"guided_json": {"type": "strin"}}, "guided_json"),
        ({"guided_grammar": "start: missing"}, "guided_grammar"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_no_backend_enforces_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(  # type: ignore[call-overload]
            model="baton-tiny",
            messages=[{"role": "user", "content": "Hi!"}],
            stream=stream,
            extra_body=fields,
        )
    assert (caught.value.param, caught.value.code) == (param, "invalid_grammar")


@pytest.mark.parametrize(
    ("fields", "form", "pattern", "backend"),
    [
        ({"guided_regex": "[ab]{3}c"}, pb.Form(regex="[ab]{3}c"), "[ab]{3}c", "guidance"),
        (
            {"guided_choice": ["red", "dark blue"]},
            pb.Form(choice=pb.Choices(texts=["red", "dark blue"])),
            "red|dark blue",
            "guidance",
        ),
        ({"guided_grammar": LARK}, pb.Form(grammar=LARK), "x[yz]{2}", "guidance"),
        ({"guided_grammar": EBNF}, pb.Form(grammar=EBNF), "x[yz][yz]", "xgrammar"),
        (
            {"structural_tag": TAG},
            pb.Form(structural_tag=json.dumps(TAG)),
            "<a>(true|false)</a>",
            "xgrammar",
        ),
    ],
    ids=["regex", "choice", "lark", "ebnf", "structural_tag"],
)
def test_every_kind_of_form(
    cluster: Cluster, fields: dict[str, Any], form: pb.Form, pattern: str, backend: str
) -> None:
    # One decode worker for all of them, as xgrammar's process takes seconds to start.
    session = {"x-baton-session": "forms"}
    body = {"prompt": "Well,", "max_tokens": 40, "temperature": 1.0, "seed": 3, **fields}
    with cluster.client() as http:
        answer = http.post("/v1/completions", json=body, headers=session)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert re.fullmatch(pattern, choice["text"])
    assert choice["grammar_backend"] == backend
    sampling = pb.Sampling(temperature=1.0, seed=3, max_tokens=40)
    with grpc.insecure_channel(cluster.grpc_target) as channel:
        request = pb.GenerateRequest(prompt="Well,", form=form, sampling=sampling)
        answered = BatonStub(channel).Generate(request, metadata=[*session.items()])
    assert answered.text == choice["text"]


def test_several_answers_are_all_constrained(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="baton-tiny",
        messages=[{"role": "user", "content": PERSON}],
        n=3,
        seed=4,
        temperature=1.5,
        max_tokens=400,
        extra_body={"guided_choice": ["red", "green"], "thinking_token_budget": 20},
    )
    assert {choice.message.content for choice in answer.choices} <= {"red", "green"}


@pytest.mark.parametrize("stream", [False, True])
def test_named_calls_after_thoughts_that_are_not_shown(client: openai.OpenAI, stream: bool) -> None:
    tool = {"type": "function", "function": {**WEATHER, "parameters": PARAMETERS}}
    answered: Any = client.chat.completions.create(  # type: ignore[call-overload]
        model="baton-tiny",
        messages=[{"role": "user", "content": "Is it raining in Hamburg?"}],
        n=2,
        seed=4,
        temperature=0.3,
        max_tokens=200,
        stream=stream,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        extra_body={"include_reasoning": False, "thinking_token_budget": 8},
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    arguments, num_reasoning = ["", ""], 0
    for chunk in answered if stream else [answered]:
        for choice in chunk.choices:
            said = choice.delta if stream else choice.message
            assert not said.content
            assert not getattr(said, "reasoning_content", None)
            for call in said.tool_calls or ():
                arguments[choice.index] += call.function.arguments
        if chunk.usage is not None:
            num_reasoning = chunk.usage.completion_tokens_details.reasoning_tokens
    assert all(isinstance(json.loads(text)["city"], str) for text in arguments)
    assert 0 < num_reasoning <= 16
