"""The official client works against the gateway."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import MESSAGES, says, serving

_TEXT = "Hello 你好 🙂"


@contextlib.asynccontextmanager
async def _client(fleet: FakeFleet, **config: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(fleet, api_keys=("key",), **config) as gateway:
        url = f"{gateway.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=0) as client:
            yield client


async def test_chat() -> None:
    async with _client(FakeFleet(says(_TEXT))) as client:
        answer = await client.chat.completions.create(
            model="baton-tiny",
            messages=MESSAGES,  # type: ignore[arg-type]
            n=2,
            logprobs=True,
            top_logprobs=1,
            extra_body={"top_k": 5},
        )
        assert [choice.message.content for choice in answer.choices] == [_TEXT, _TEXT]
        assert answer.choices[0].logprobs is not None
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None


async def test_chat_stream() -> None:
    async with _client(FakeFleet(says(_TEXT))) as client:
        stream = await client.chat.completions.create(
            model="baton-tiny",
            messages=MESSAGES,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(said) == _TEXT
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 5


async def test_completions_and_models() -> None:
    async with _client(FakeFleet(says(_TEXT))) as client:
        answer = await client.completions.create(
            model="baton-tiny", prompt=["a", "b"], echo=True, max_tokens=50, logprobs=1
        )
        assert [choice.text for choice in answer.choices] == [f"a{_TEXT}", f"b{_TEXT}"]
        stream = await client.completions.create(
            model="baton-tiny", prompt="a", stream=True, max_tokens=50
        )
        assert "".join([c.choices[0].text async for c in stream]) == _TEXT
        assert [model.id async for model in client.models.list()] == ["baton-tiny"]
        assert (await client.models.retrieve("baton-tiny")).owned_by == "baton"


async def test_errors_become_the_clients_exceptions() -> None:
    async with _client(FakeFleet(says(_TEXT))) as client:
        with pytest.raises(openai.NotFoundError, match="not served here"):
            await client.completions.create(model="gpt", prompt="a")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="baton-tiny", prompt="a", temperature=-1)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.UnprocessableEntityError):
            await client.completions.create(model="baton-tiny", prompt="a", max_tokens=0)
        stranger = client.with_options(api_key="other")
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


class GetWeather(BaseModel):
    """Weather of a city."""

    city: str


_CALLING = (
    "<think>\nI need it.\n</think>\n\n"
    '<tool_call>\n{"name": "GetWeather", "arguments": {"city": "Paris"}}\n</tool_call>'
)


async def test_tools() -> None:
    tool = openai.pydantic_function_tool(GetWeather)
    async with _client(FakeFleet(says(_CALLING))) as client:
        answer = await client.chat.completions.parse(
            model="baton-tiny",
            messages=MESSAGES,  # type: ignore[arg-type]
            tools=[tool],
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or ()
        assert call.function.parsed_arguments == GetWeather(city="Paris")
        assert choice.message.model_extra is not None
        assert choice.message.model_extra["reasoning_content"] == "I need it."
        # What the client got may be sent back as it is.
        back = choice.message.model_dump(exclude={"parsed"}, exclude_none=True)
        back["tool_calls"][0]["function"].pop("parsed_arguments")
        result = {"role": "tool", "tool_call_id": call.id, "content": "grey"}
        await client.chat.completions.create(
            model="baton-tiny",
            messages=[*MESSAGES, back, result],  # type: ignore[list-item]
        )


async def test_streamed_tools() -> None:
    tool = openai.pydantic_function_tool(GetWeather)
    async with (
        _client(FakeFleet(says(_CALLING))) as client,
        client.chat.completions.stream(
            model="baton-tiny",
            messages=MESSAGES,  # type: ignore[arg-type]
            tools=[tool],
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        assert "tool_calls.function.arguments.done" in kinds
        message = (await stream.get_final_completion()).choices[0].message
        (call,) = message.tool_calls or ()
        assert call.function.parsed_arguments == GetWeather(city="Paris")


async def test_response_format() -> None:
    async with _client(FakeFleet(says('{"city": "Paris"}'))) as client:
        answer = await client.beta.chat.completions.parse(
            model="baton-tiny",
            messages=MESSAGES,  # type: ignore[arg-type]
            response_format=GetWeather,
        )
        assert answer.choices[0].message.parsed == GetWeather(city="Paris")
