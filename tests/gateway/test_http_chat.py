"""POST /v1/chat/completions over a real socket; every answer valid by OpenAI's schemas."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import (
    MESSAGES,
    check,
    check_error,
    events,
    says,
    serving,
    text_of,
    tokenizer,
)

_TEXT = "Hello 你好 🙂, all is well"


async def test_whole_answer() -> None:
    async with serving(FakeFleet(says(_TEXT))) as gateway:
        response = await gateway.chat(model="baton-tiny")
        document = response.json()
        check("CreateChatCompletionResponse", document)
        assert document["choices"][0]["message"]["content"] == _TEXT
        assert document["choices"][0]["finish_reason"] == "stop"
        num_prompt = len(gateway.fleet.requests[0].prompt_token_ids)
        num_new = len(tokenizer().encode(_TEXT)) + 1
        assert document["usage"] == {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_new,
            "total_tokens": num_prompt + num_new,
            "prompt_tokens_details": {"cached_tokens": 16},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        request = gateway.fleet.requests[0]
        rendered = tokenizer().render_chat(MESSAGES)
        assert list(request.prompt_token_ids) == tokenizer().encode(rendered)
        assert request.sampling.max_tokens == 8192 - num_prompt
        assert response.headers["x-request-id"]
        assert "x-baton-plan" not in response.headers


@pytest.mark.parametrize("per_chunk", [1, 3, 100])
@pytest.mark.parametrize("usage", [True, False])
async def test_stream(per_chunk: int, usage: bool) -> None:
    async with serving(FakeFleet(says(_TEXT), per_chunk=per_chunk)) as gateway:
        response = await gateway.chat(stream=True, stream_options={"include_usage": usage})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        chunks = events(response.text)
        for chunk in chunks:
            check("CreateChatCompletionStreamResponse", chunk)
        assert text_of(chunks) == _TEXT
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        last = chunks.pop() if usage else None
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        if last is not None:
            assert last["choices"] == []
            assert last["usage"]["completion_tokens"] == len(tokenizer().encode(_TEXT)) + 1
            assert all(chunk["usage"] is None for chunk in chunks)
        else:
            assert all("usage" not in chunk for chunk in chunks)


async def test_several_choices_continue_where_the_first_ran() -> None:
    def script(request: Any) -> list[int]:
        return [*tokenizer().encode(f"seed {request.sampling.seed}"), 2]

    async with serving(FakeFleet(script)) as gateway:
        response = await gateway.chat(n=3, seed=7, stream=True)
        chunks = events(response.text)
        assert [text_of(chunks, i) for i in range(3)] == ["seed 7", "seed 8", "seed 9"]
        assert gateway.fleet.stuck_to == [None, "d0", "d0"]
        assert chunks[0]["choices"][0]["index"] == 0
        document = (await gateway.chat(n=3, seed=2**63 - 1)).json()
        check("CreateChatCompletionResponse", document)
        said = [choice["message"]["content"] for choice in document["choices"]]
        assert said == [f"seed {2**63 - 1}", f"seed {-(2**63)}", f"seed {-(2**63) + 1}"]
        assert document["usage"]["prompt_tokens"] < document["usage"]["total_tokens"]


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs(stream: bool) -> None:
    async with serving(FakeFleet(says("Hé"))) as gateway:
        response = await gateway.chat(logprobs=True, top_logprobs=2, stream=stream)
        if stream:
            chunks = events(response.text)
            for chunk in chunks:
                check("CreateChatCompletionStreamResponse", chunk)
            found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
            content = [entry for each in found if each for entry in each["content"]]
        else:
            check("CreateChatCompletionResponse", response.json())
            content = response.json()["choices"][0]["logprobs"]["content"]
        text = bytes(byte for entry in content[:-1] for byte in entry["bytes"]).decode()
        assert text == "Hé"
        assert content[-1]["token"] == "<|im_end|>"
        assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(content)
        assert gateway.fleet.requests[0].sampling.logprobs == 2


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("per_chunk", [1, 4, 100])
async def test_stop_strings(stream: bool, per_chunk: int) -> None:
    fleet = FakeFleet(says("one two three four"), per_chunk=per_chunk)
    async with serving(fleet) as gateway:
        response = await gateway.chat(stop=["zzz", "o three"], stream=stream)
        if stream:
            chunks = events(response.text)
            said, reason = text_of(chunks), chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = response.json()["choices"][0]
            said, reason = choice["message"]["content"], choice["finish_reason"]
            num_tokens = response.json()["usage"]["completion_tokens"]
            consumed = tokenizer().decode(tokenizer().encode("one two three four")[:num_tokens])
            assert "o three" in consumed
        assert (said, reason) == ("one tw", "stop")


async def test_kept_stop_string_and_min_tokens() -> None:
    async with serving(FakeFleet(says("a b a b a b"))) as gateway:
        kept = await gateway.chat(stop="b", include_stop_str_in_output=True)
        assert kept.json()["choices"][0]["message"]["content"] == "a b"
        later = await gateway.chat(stop="b", min_tokens=5)
        assert later.json()["choices"][0]["message"]["content"].startswith("a b a")


async def test_sampling_reaches_the_worker() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        await gateway.chat(
            temperature=0,
            top_p=0.5,
            top_k=7,
            min_p=0.1,
            repetition_penalty=1.5,
            presence_penalty=-1,
            frequency_penalty=2,
            logit_bias={"5": -100, "6": 1.5},
            stop_token_ids=[9],
            ignore_eos=True,
            min_tokens=1,
            max_completion_tokens=11,
            seed=-5,
            priority=-1,
            cache_salt="tenant",
            user="u",
            metadata={"a": "b"},
            store=True,
        )
        request = gateway.fleet.requests[0]
        params = request.sampling
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 7, 0.1)
        assert params.repetition_penalty == 1.5
        assert (params.presence_penalty, params.frequency_penalty) == (-1, 2)
        assert params.logit_bias == ((5, -100.0), (6, 1.5))
        assert (params.stop_token_ids, params.ignore_eos, params.min_tokens) == ((9,), True, 1)
        assert (params.max_tokens, params.seed) == (11, -5)
        assert request.priority == -1
        assert request.cache_salt
        await gateway.chat()
        await gateway.chat()
        seeds = [r.sampling.seed for r in gateway.fleet.requests[1:]]
        assert seeds[0] != seeds[1]


async def test_extensions() -> None:
    async with serving(FakeFleet(says("yes"))) as gateway:
        document = (await gateway.chat(return_token_ids=True, prompt_logprobs=1)).json()
        check("CreateChatCompletionResponse", document)
        prompt = tokenizer().encode(tokenizer().render_chat(MESSAGES))
        assert document["prompt_token_ids"] == prompt
        assert document["choices"][0]["token_ids"] == [*tokenizer().encode("yes"), 2]
        assert document["prompt_logprobs"][0] is None
        assert list(document["prompt_logprobs"][1]) == [str(prompt[1])]
        await gateway.chat(chat_template_kwargs={"enable_thinking": False})
        text = tokenizer().decode(gateway.fleet.requests[-1].prompt_token_ids)
        assert text.endswith("<think>\n\n</think>\n\n")
        await gateway.chat(add_generation_prompt=False)
        text = tokenizer().decode(gateway.fleet.requests[-1].prompt_token_ids)
        assert text.endswith("<|im_end|>\n")


async def test_a_conversation_with_every_kind_of_message() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "w", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny.", "refusal": None, "annotations": []},
        {"role": "user", "content": "thanks", "name": "ann"},
    ]
    async with serving(FakeFleet(says("ok"))) as gateway:
        assert (await gateway.chat(messages=messages)).status_code == 200
        text = tokenizer().decode(gateway.fleet.requests[0].prompt_token_ids)
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
        assert '{"name": "w", "arguments": {"a": 1}}' in text
        assert "sunny" in text


async def test_plan_and_request_id_when_asked() -> None:
    async with serving(FakeFleet(says("ok"))) as gateway:
        for stream in (True, False):
            response = await gateway.http.post(
                "/v1/chat/completions",
                json={"messages": MESSAGES, "stream": stream},
                headers={"x-baton-explain": "1", "x-request-id": "mine"},
            )
            assert "decode=d0 prefill=p0" in response.headers["x-baton-plan"]
            assert response.headers["x-request-id"] == "mine"
        response = await gateway.http.post(
            "/v1/chat/completions?explain=1", json={"messages": MESSAGES}
        )
        assert "x-baton-plan" in response.headers


async def test_logs_tell_of_requests_but_not_what_they_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="baton")
    word = "xylophone"
    messages = [{"role": "user", "content": word}]
    async with serving(FakeFleet(says("x"))) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json={"messages": messages})
        named = {"x-request-id": "mine"}
        await gateway.http.post("/v1/chat/completions", json={"messages": messages}, headers=named)
        await gateway.http.post("/v1/chat/completions", json={"messages": word})
    told = [getattr(record, "baton_fields", {}) for record in caplog.records]
    ended = [one for one in told if "e2e_s" in one]
    assert answer.headers["x-request-id"] == answer.json()["id"] == ended[0]["request_id"]
    assert [one.get("client_request_id") for one in ended] == [None, "mine"]
    assert {one["outcome"] for one in ended} == {"ok"}
    assert told[-1]["outcome"] == "invalid_value"
    assert word not in caplog.text + str(told)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("functions", [{"name": "f"}]),
        ("web_search_options", {}),
    ],
)
async def test_what_is_not_done_yet_is_refused_by_name(field: str, value: object) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        error = check_error(await gateway.chat(**{field: value}), 400, field)
        assert "not supported yet" in error["message"]
        assert not gateway.fleet.requests


async def test_harmless_forms_of_what_is_not_done_yet() -> None:
    harmless = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "service_tier": "auto",
    }
    async with serving(FakeFleet(says("x"))) as gateway:
        assert (await gateway.chat(**harmless)).status_code == 200
