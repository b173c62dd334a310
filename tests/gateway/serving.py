"""A gateway on real ports over a scripted fleet, and checks against OpenAI's schemas."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from tests.gateway.fakes import FakeFleet

from baton.gateway.adapters_api import AdapterControl
from baton.gateway.config import GatewayConfig
from baton.gateway.seam import ClusterControl
from baton.gateway.server import GatewayServer
from baton.gateway.tokenizer import Tokenizer, load_tokenizer
from baton.protos.types import GenerateRequest

MODEL_DIR = str(Path(__file__).parents[2] / "models" / "baton-tiny")
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EOS = 2


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(MODEL_DIR)


def says(text: str) -> Callable[[GenerateRequest], list[int]]:
    """A script that answers every request with `text` and an eos."""
    token_ids = [*tokenizer().encode(text), EOS]
    return lambda request: token_ids


@dataclass
class Served:
    server: GatewayServer
    fleet: FakeFleet
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post(CHAT, json={"messages": MESSAGES, **fields})

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.http.post(COMPLETIONS, json={"prompt": "hi there", **fields})


@contextlib.asynccontextmanager
async def serving(
    fleet: FakeFleet,
    control: ClusterControl | None = None,
    adapters: AdapterControl | None = None,
    **config: Any,
) -> AsyncIterator[Served]:
    """Ends with the check that no generation was left behind."""
    full = GatewayConfig(**{"model_dir": MODEL_DIR, "http_port": 0, "grpc_port": None, **config})
    server = GatewayServer(full, fleet, tokenizer=tokenizer(), control=control, adapters=adapters)
    await server.start()
    try:
        base_url = f"http://127.0.0.1:{server.http_port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=20.0) as http:
            yield Served(server, fleet, http)
    finally:
        await server.close(0.0)
    assert not fleet.running


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def events(text: str) -> list[dict[str, Any]]:
    """The JSON documents of a complete stream, without its [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]", text[-300:]
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """What a streamed choice said, of chat or completion chunks."""
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content") or "" if "delta" in c else c["text"] for c in choices)


@functools.cache
def _schemas() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (Path(__file__).parent / "openapi_schemas.json").read_text()
    )
    schemas = document["components"]["schemas"]
    # The specification has one schema for streamed and whole completions, and forbids the nulls
    # that every stream has (no finish_reason yet) and that OpenAI's own echo has (the first token's
    # logprob).
    amended = copy.deepcopy(schemas["CreateCompletionResponse"])
    choice = amended["properties"]["choices"]["items"]["properties"]
    choice["finish_reason"] = {"anyOf": [choice["finish_reason"], {"type": "null"}]}
    columns = choice["logprobs"]["anyOf"][0]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        columns[name]["items"] = {"anyOf": [columns[name]["items"], {"type": "null"}]}
    schemas["CompletionWithNulls"] = amended
    return document


def check(name: str, document: Any) -> None:
    """`document` must be valid by the named schema."""
    validator = Draft202012Validator({**_schemas(), "$ref": f"#/components/schemas/{name}"})
    errors = [
        f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(document)
    ]
    assert not errors, errors


def check_error(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The response must be OpenAI's error object with this status and parameter."""
    assert response.status_code == status, response.text
    document = response.json()
    check("ErrorResponse", document)
    error: dict[str, Any] = document["error"]
    assert error["param"] == param, error
    assert "Traceback" not in response.text
    return error
