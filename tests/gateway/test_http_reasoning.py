"""Thoughts in chat answers: apart from the content, counted, bounded, switched on and off."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import (
    MESSAGES,
    Served,
    check,
    check_error,
    events,
    says,
    serving,
    tokenizer,
)

ANSWER = "<think>\nTwo and two.\n\nSo four.\n</think>\n\nIt is **4**."
THOUGHT = "Two and two.\n\nSo four."


async def answered(gateway: Served, stream: bool, **fields: Any) -> tuple[str, str | None, int]:
    """Thought, content, and the number of tokens of the thought."""
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    response = await gateway.chat(stream=stream, **usage, **fields)
    assert response.status_code == 200, response.text
    if not stream:
        document = response.json()
        check("CreateChatCompletionResponse", document)
        message = document["choices"][0]["message"]
        assert message.get("reasoning") == message.get("reasoning_content")
        thought, content = message.get("reasoning", ""), message["content"]
    else:
        chunks = events(response.text)
        for chunk in chunks:
            check("CreateChatCompletionStreamResponse", chunk)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        assert all(d.get("reasoning") == d.get("reasoning_content") for d in deltas)
        thought = "".join(d.get("reasoning", "") for d in deltas)
        content = "".join(d.get("content", "") for d in deltas) or None
        document = chunks[-1]
    return thought, content, document["usage"]["completion_tokens_details"]["reasoning_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("per_chunk", [1, 4, 100])
async def test_thought_and_answer(stream: bool, per_chunk: int) -> None:
    async with serving(FakeFleet(says(ANSWER), per_chunk=per_chunk)) as gateway:
        num_tokens = len(tokenizer().encode("\nTwo and two.\n\nSo four.\n"))
        found = await answered(gateway, stream)
        assert found == (THOUGHT, "It is **4**.", num_tokens)
        found = await answered(gateway, stream, include_reasoning=False)
        assert found == ("", "It is **4**.", num_tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_thought_that_is_cut_off_and_an_answer_without_one(stream: bool) -> None:
    async with serving(FakeFleet(says(ANSWER))) as gateway:
        thought, content, num_tokens = await answered(gateway, stream, max_tokens=4)
        assert THOUGHT.startswith(thought)
        assert (content, num_tokens) == (None, 3)
    async with serving(FakeFleet(says("\n\nFour."))) as gateway:
        assert await answered(gateway, stream) == ("", "Four.", 0)


async def test_thinking_is_switched_by_kwargs_and_effort() -> None:
    asked = [{"role": "user", "content": "What does <think> mean?"}]
    async with serving(FakeFleet(says("It is a tag."))) as gateway:
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        assert await answered(gateway, False, **off) == ("", "It is a tag.", 0)
        await answered(gateway, False, reasoning_effort="none")
        await answered(gateway, False, reasoning_effort="high")
        # Whoever asks about the marker has not opened a thought with it.
        assert await answered(gateway, False, messages=asked) == ("", "It is a tag.", 0)
        tails = [
            tokenizer().decode(list(request.prompt_token_ids))[-21:]
            for request in gateway.fleet.requests
        ]
        closed = "<think>\n\n</think>\n\n"
        assert [closed in tail for tail in tails] == [True, True, False, False]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_thought_alone_is_the_content_where_there_must_be_some(stream: bool) -> None:
    kwargs = {"chat_template_kwargs": {"force_nonempty_content": True}}
    async with serving(FakeFleet(says("<think>\nFour.\n</think>\n\n"))) as gateway:
        assert (await answered(gateway, stream, **kwargs))[:2] == ("", "Four.\n")
    async with serving(FakeFleet(says(ANSWER))) as gateway:
        plain = await answered(gateway, stream)
        assert await answered(gateway, stream, **kwargs) == plain


async def test_earlier_thoughts_may_be_sent_back_under_either_name() -> None:
    prompts = []
    for name in ("reasoning_content", "reasoning"):
        earlier = {"role": "assistant", "content": "4", name: "Two and two."}
        async with serving(FakeFleet(says("x"))) as gateway:
            await gateway.chat(messages=[*MESSAGES, earlier])
            prompts.append(tokenizer().decode(list(gateway.fleet.requests[0].prompt_token_ids)))
    assert prompts[0] == prompts[1]
    assert "Two and two." in prompts[0]


async def test_a_budget_reaches_the_worker() -> None:
    async with serving(FakeFleet(says(ANSWER))) as gateway:
        await gateway.chat(thinking_token_budget=7)
        await gateway.chat(thinking_budget=0)
        first, second = (request.thought for request in gateway.fleet.requests)
        # The line break before the end is of the thought, too.
        assert first is not None
        assert (first.budget, first.open, first.start_ids, first.end_ids) == (6, False, (3,), (4,))
        assert tokenizer().decode(list(first.close_ids)) == "\n</think>"
        assert second is not None
        assert (second.budget, second.close_ids) == (0, (4,))
        error = check_error(
            await gateway.chat(thinking_token_budget=1, thinking_budget=2),
            422,
            "thinking_token_budget",
        )
        assert "thinking_budget is 2" in error["message"]
    async with serving(FakeFleet(says("x")), reasoning_parser="none") as gateway:
        check_error(await gateway.chat(thinking_token_budget=7), 400, "thinking_token_budget")
        thought, content, _ = await answered(gateway, False)
        assert (thought, content) == ("", "x")
