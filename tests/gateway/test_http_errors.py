"""Whatever is sent, the answer is OpenAI's error object with the right status."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.fakes import FakeFleet
from tests.gateway.serving import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    check,
    check_error,
    says,
    serving,
)

from baton.gateway.openai_schema import ChatBody, CompletionBody
from baton.protos.errors import BatonError, OverloadedError, UnavailableError


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 0}, 400, "n"),
        ({"n": 129}, 400, "n"),
        ({"seed": 2**63}, 400, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias"),
        ({"max_tokens": 10**4000}, 400, "max_tokens"),
        ({"stop_token_ids": [5000]}, 400, "stop_token_ids"),
        ({"stop_token_ids": [10**400]}, 400, "stop_token_ids.0"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**6}, 400, "max_tokens"),
        ({"top_logprobs": 2}, 422, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, 422, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 2}, 400, "min_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": ""}]}, 400, "messages.0.role"),
        ({"messages": [{"content": ""}]}, 400, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content",
        ),
        ({"chat_template_kwargs": {"messages": 1}}, 400, "chat_template_kwargs.messages"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"cache_salt": ""}, 400, "cache_salt"),
    ],
)
async def test_bad_fields(fields: dict[str, Any], status: int, param: str) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        error = check_error(await gateway.chat(**fields), status, param)
        assert param.split(".")[-1] in error["message"] or param.split(".")[0] in error["message"]
        assert not gateway.fleet.requests


async def test_messages_help() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        error = check_error(await gateway.chat(temprature=1), 400, "temprature")
        assert "did you mean temperature?" in error["message"]
        error = check_error(await gateway.chat(max_tokens=9000), 400, "max_tokens")
        assert error["code"] == "context_length_exceeded"
        assert "use at most 8182" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 10_000, b'{"messages": "\\ud800"}'],
)
async def test_bodies_that_are_not_what_is_asked(body: bytes) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        for path in (CHAT, COMPLETIONS, "/tokenize", "/detokenize"):
            check_error(await gateway.http.post(path, content=body), 400)


async def test_body_limit_declared_and_undeclared() -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 1000

    async with serving(FakeFleet(says("x")), max_body_bytes=5000) as gateway:
        check_error(await gateway.http.post(CHAT, content=b" " * 6000), 413)
        # The server answers and closes before everything is sent.
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):
            check_error(await gateway.http.post(CHAT, content=chunks()), 413)
        assert (await gateway.chat()).status_code == 200


async def test_a_body_that_never_comes() -> None:
    async with serving(FakeFleet(says("x")), body_timeout_s=0.1) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.http_port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"connection: close" in head
        writer.close()


async def test_routes_and_methods() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        check_error(await gateway.http.get("/v2/chat"), 404)
        response = await gateway.http.get(CHAT)
        check_error(response, 405)
        assert response.headers["allow"] == "POST"
        check_error(await gateway.http.post("/health", json={}), 405)
        bad = await gateway.http.get("/health", headers={"x-request-id": "a b"})
        check_error(bad, 400, "x-request-id")


async def test_authentication() -> None:
    async with serving(FakeFleet(says("x")), api_keys=("key-1", "key-2")) as gateway:
        response = await gateway.chat()
        check_error(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        for header in ("Bearer wrong", "key-1", "Basic key-1", "Bearer", "Bearer kéy"):
            headers = {"authorization": header.encode()}
            check_error(await gateway.http.get("/v1/models", headers=headers), 401)
        for key in ("key-1", "key-2"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert (await gateway.http.get(path)).status_code == 200
        assert "key-1" not in repr(gateway.server.service.config)


@pytest.mark.parametrize("stream", [True, False])
async def test_errors_of_planning_keep_their_status(stream: bool) -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        gateway.fleet.plan_error = UnavailableError("no decode worker")
        response = await gateway.chat(stream=stream)
        check_error(response, 503)
        assert response.headers["retry-after"] == "1"
        gateway.fleet.plan_error = OverloadedError("full", retry_after_s=2.5)
        response = await gateway.chat(stream=stream)
        check_error(response, 429)
        assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize("n", [1, 2])
async def test_errors_before_and_inside_a_stream(n: int) -> None:
    async with serving(FakeFleet(says("one two three"))) as gateway:
        gateway.fleet.error = UnavailableError("all workers died")
        check_error(await gateway.chat(stream=True, n=n), 503)
        check_error(await gateway.chat(n=n), 503)
        gateway.fleet.fail_after = 2
        response = await gateway.chat(stream=True, n=n)
        assert response.status_code == 200
        lines = [line for line in response.text.split("\n\n") if line]
        assert "[DONE]" not in response.text
        document = json.loads(lines[-1].removeprefix("data: "))
        check("ErrorResponse", document)
        assert document["error"]["message"] == "all workers died"


async def test_an_unexpected_error_shows_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: object) -> list[int]:
        raise RuntimeError("secret detail")

    async with serving(FakeFleet(broken)) as gateway:
        response = await gateway.chat()
        error = check_error(response, 500)
        assert response.headers["x-request-id"] in error["message"]
        assert "secret" not in response.text
        assert "secret detail" in caplog.text
        metrics = (await gateway.http.get("/metrics")).text
        assert 'outcome="internal_error"} 1.0' in metrics


async def test_every_error_of_the_tree_has_a_body() -> None:
    async with serving(FakeFleet(says("x"))) as gateway:
        gateway.fleet.plan_error = BatonError("broken", param="p", code="c")
        assert check_error(await gateway.chat(), 500, "p")["code"] == "c"


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize(("path", "model"), [(CHAT, ChatBody), (COMPLETIONS, CompletionBody)])
async def test_fuzzed_bodies_are_never_a_server_error(path: str, model: Any) -> None:
    names = sorted(model.model_fields)
    base: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": "a"}
    async with serving(FakeFleet(says("x"))) as gateway:
        loop = asyncio.get_running_loop()

        @settings(
            max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(fields=st.dictionaries(st.sampled_from(names), _VALUES, max_size=3))
        def fuzz(fields: dict[str, Any]) -> None:
            request = gateway.http.post(path, json={**base, **fields})
            response = asyncio.run_coroutine_threadsafe(request, loop).result(20)
            if response.status_code != 200:
                assert 400 <= response.status_code < 500, (fields, response.text)
                check("ErrorResponse", response.json())

        await asyncio.to_thread(fuzz)


async def test_plans_are_explained_to_those_who_have_a_key() -> None:
    async with serving(FakeFleet(says("x")), api_keys=("key-1",)) as gateway:
        check_error(await gateway.http.get("/debug/plans/known"), 401)
        headers = {"authorization": "Bearer key-1"}
        known = await gateway.http.get("/debug/plans/known", headers=headers)
        assert known.json() == {"plans": [{"request_id": "known"}]}
        unknown = await gateway.http.get("/debug/plans/other", headers=headers)
        check_error(unknown, 404)
