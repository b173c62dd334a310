"""POST /v1/completions, /tokenize, /detokenize, /v1/models over a real socket."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import check, check_error, events, says, serving, text_of, tokenizer

_PROMPT = "hi there"


async def test_whole_answer_with_openais_default_length() -> None:
    async with serving(FakeFleet(says("x " * 40))) as gateway:
        document = (await gateway.complete()).json()
        check("CreateCompletionResponse", document)
        assert document["usage"]["completion_tokens"] == 16
        assert document["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("echo", [True, False])
async def test_stream(echo: bool) -> None:
    async with serving(FakeFleet(says(" you 你"), per_chunk=2)) as gateway:
        response = await gateway.complete(
            stream=True, echo=echo, stream_options={"include_usage": True}
        )
        chunks = events(response.text)
        for chunk in chunks:
            check("CompletionWithNulls", chunk)
        assert text_of(chunks) == (_PROMPT if echo else "") + " you 你"
        assert chunks[-1]["usage"]["total_tokens"] == 3 + len(tokenizer().encode(" you 你")) + 1


async def test_every_form_of_prompt() -> None:
    def script(request: Any) -> list[int]:
        return [*request.prompt_token_ids, 2]

    ids = tokenizer().encode(_PROMPT)
    async with serving(FakeFleet(script)) as gateway:
        for prompt in (_PROMPT, [_PROMPT], ids, [ids]):
            document = (await gateway.complete(prompt=prompt, echo=True)).json()
            assert [c["text"] for c in document["choices"]] == [_PROMPT * 2]
        document = (await gateway.complete(prompt=["a", "b"], n=2, stream=False)).json()
        check("CreateCompletionResponse", document)
        assert [c["text"] for c in document["choices"]] == ["a", "a", "b", "b"]
        assert [c["index"] for c in document["choices"]] == [0, 1, 2, 3]
        assert document["usage"]["prompt_tokens"] == 2
        chunks = events((await gateway.complete(prompt=["a", "b"], stream=True)).text)
        assert [text_of(chunks, i) for i in range(2)] == ["a", "b"]


async def test_logprobs_have_offsets_into_the_text() -> None:
    async with serving(FakeFleet(says(" you é!"))) as gateway:
        for echo in (False, True):
            document = (await gateway.complete(logprobs=2, echo=echo)).json()
            check("CompletionWithNulls", document)
            choice = document["choices"][0]
            columns, text = choice["logprobs"], choice["text"]
            sizes = {len(column) for column in columns.values()}
            assert len(sizes) == 1
            for token, offset in zip(columns["tokens"], columns["text_offset"], strict=True):
                if not token.startswith(("bytes:", "<|")):
                    assert text[offset : offset + len(token)] == token
            assert (columns["token_logprobs"][0] is None) is echo
            assert max(len(top) for top in columns["top_logprobs"] if top) in (2, 3)
        chunks = events((await gateway.complete(logprobs=0, stream=True)).text)
        offsets = [i for c in chunks for i in c["choices"][0]["logprobs"]["text_offset"]]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0


async def test_scoring_a_prompt_without_an_answer() -> None:
    async with serving(FakeFleet(says("never seen"))) as gateway:
        document = (await gateway.complete(max_tokens=0, echo=True, logprobs=1)).json()
        check("CompletionWithNulls", document)
        choice = document["choices"][0]
        assert choice["text"] == _PROMPT
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == 3
        assert document["usage"]["completion_tokens"] == 0


async def test_extensions() -> None:
    async with serving(FakeFleet(says("yes"))) as gateway:
        document = (await gateway.complete(return_token_ids=True, prompt_logprobs=0)).json()
        check("CreateCompletionResponse", document)
        choice = document["choices"][0]
        assert choice["prompt_token_ids"] == tokenizer().encode(_PROMPT)
        assert choice["token_ids"] == [*tokenizer().encode("yes"), 2]
        assert len(choice["prompt_logprobs"]) == 3
        chunks = events((await gateway.complete(return_token_ids=True, stream=True)).text)
        first = chunks[0]["choices"][0]
        assert first["prompt_token_ids"] == tokenizer().encode(_PROMPT)
        streamed = [i for c in chunks for i in c["choices"][0]["token_ids"]]
        assert streamed == [*tokenizer().encode("yes"), 2]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"suffix": "x"}, 400, "suffix"),
        ({"best_of": 3}, 400, "best_of"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": [5, 1024]}, 400, "prompt"),
        ({"prompt": [5, "a"]}, 400, "prompt"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"max_tokens": 8190}, 400, "max_tokens"),
        ({"prompt": [5] * 8192}, 400, "prompt"),
        ({"logprobs": 21}, 400, "logprobs"),
        ({"n": 100, "prompt": ["a", "b"]}, 400, "n"),
        ({"stream_options": {}}, 422, "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, 422, "prompt_logprobs"),
    ],
)
async def test_refusals_name_the_field(fields: dict[str, Any], status: int, param: str) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        check_error(await gateway.complete(**fields), status, param)
        assert not gateway.fleet.requests


async def test_best_of_equal_to_n_is_the_same_as_n() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        assert len((await gateway.complete(n=2, best_of=2)).json()["choices"]) == 2


async def test_tokenize_and_detokenize() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        text = "Héllo 你 " * 300
        document = (await gateway.http.post("/tokenize", json={"prompt": text})).json()
        assert document["tokens"] == tokenizer().encode(text)
        assert (document["count"], document["max_model_len"]) == (len(document["tokens"]), 8192)
        back = await gateway.http.post("/detokenize", json={"tokens": document["tokens"]})
        assert back.json() == {"prompt": text}
        chat = {"messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
        document = (await gateway.http.post("/tokenize", json=chat)).json()
        assert document["token_strs"][0] == "<|im_start|>"
        check_error(await gateway.http.post("/tokenize", json={}), 422, "prompt")
        check_error(await gateway.http.post("/detokenize", json={"tokens": [-1]}), 400, "tokens")


async def test_models() -> None:
    async with serving(FakeFleet(says("x")), served_model_names=("org/a", "b")) as gateway:
        document = (await gateway.http.get("/v1/models")).json()
        check("ListModelsResponse", document)
        assert [model["id"] for model in document["data"]] == ["org/a", "b"]
        check("Model", (await gateway.http.get("/v1/models/org/a")).json())
        check_error(await gateway.http.get("/v1/models/c"), 404, "model")
        assert (await gateway.complete(model="b")).json()["model"] == "org/a"
        error = check_error(await gateway.complete(model="gpt"), 404, "model")
        assert error["code"] == "model_not_found"
        assert "org/a" in error["message"]
