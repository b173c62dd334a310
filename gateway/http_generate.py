"""The life of one generating HTTP request: admit, read, prepare, answer; whatever happens, it
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from baton.gateway.answers import Answer, Transcript, for_each
from baton.gateway.chat import ChatAnswer
from baton.gateway.chat_request import chat_call
from baton.gateway.choice import Choice
from baton.gateway.completions import CompletionAnswer, completion_call
from baton.gateway.exchange import Exchange
from baton.gateway.limits import Deadline
from baton.gateway.openai_schema import ChatBody, CompletionBody
from baton.gateway.pacer import Pacer
from baton.gateway.parse import parse_body
from baton.gateway.service import GatewayService
from baton.protos.errors import InvalidRequestError

# A body's bytes to its answer, checked.
AnswerReader = Callable[[GatewayService, bytes], Answer]

_MAX_HEADER_CHARS = 128


def read_chat(service: GatewayService, raw: bytes) -> Answer:
    """Checks a chat body."""
    body = parse_body(ChatBody, raw)
    call = chat_call(body, f"chatcmpl-{uuid.uuid4().hex}", service.dialect)
    return ChatAnswer(body, call, service.tokenizer, service.reported_model(call.model))


def read_completion(service: GatewayService, raw: bytes) -> Answer:
    """Checks a completion body."""
    body = parse_body(CompletionBody, raw)
    call = completion_call(body, f"cmpl-{uuid.uuid4().hex}")
    name = service.reported_model(call.model)
    return CompletionAnswer(body, call, service.tokenizer, name)


class GenerateEndpoint:
    """Handles the endpoints that generate. Every way out closes the sequences in their workers."""

    def __init__(self, service: GatewayService, read: AnswerReader) -> None:
        self._service = service
        self._read = read

    async def __call__(self, exchange: Exchange) -> None:
        service = self._service
        received_s = service.clock.now_s()
        timeout_s = service.timeout_s(_seconds_header(exchange, "x-baton-timeout-s"))
        ttft_s = service.ttft_s(_seconds_header(exchange, "x-baton-ttft-s"))
        deadline = Deadline(timeout_s)
        with service.admission.admit(deadline, exchange.tenant):
            async with deadline:
                raw = await exchange.read_body(
                    service.config.max_body_bytes, service.config.body_timeout_s
                )
                answer = await service.off_loop(len(raw), lambda: self._read(service, raw))
                wanted_id = exchange.headers.get("x-request-id", "")
                if not wanted_id:
                    exchange.use_request_id(answer.call.request_id)
                call = replace(
                    answer.call,
                    timeout_s=timeout_s,
                    client_request_id=wanted_id,
                    tenant=exchange.tenant,
                    ttft_s=ttft_s,
                    traceparent=exchange.headers.get("traceparent", "")[:_MAX_HEADER_CHARS],
                    session=exchange.headers.get("x-baton-session", "")[:_MAX_HEADER_CHARS],
                )
                async with _client_watched(exchange, deadline):
                    job = await service.prepare(call)
                    answer.prepared(job)
                    async with service.open(job, received_s) as choices:
                        await self._send(exchange, answer, choices)

    async def _send(self, exchange: Exchange, answer: Answer, choices: Sequence[Choice]) -> None:
        if answer.stream:
            await _send_events(exchange, answer, choices, self._service.pacer)
        else:
            await _send_whole(exchange, answer, choices)


async def _send_events(
    exchange: Exchange, answer: Answer, choices: Sequence[Choice], pacer: Pacer
) -> None:
    async def pump(choice: Choice) -> None:
        async for delta in choice:
            data = answer.delta(choice, delta)
            if data:
                if not exchange.started:
                    _explain(exchange, choice)
                await exchange.write_event(data)
            if pacer.pause_s and delta.finish_reason is None:
                await asyncio.sleep(pacer.pause_s)

    await for_each(choices, pump)
    await exchange.end_events(answer.closing(choices))


async def _send_whole(exchange: Exchange, answer: Answer, choices: Sequence[Choice]) -> None:
    transcripts = {choice.index: Transcript() for choice in choices}

    async def collect(choice: Choice) -> None:
        transcript = transcripts[choice.index]
        async for delta in choice:
            transcript.add(delta)

    await for_each(choices, collect)
    _explain(exchange, choices[0])
    await exchange.respond(answer.whole(choices, [transcripts[c.index] for c in choices]))


@contextlib.asynccontextmanager
async def _client_watched(exchange: Exchange, deadline: Deadline) -> AsyncIterator[None]:
    watcher = asyncio.create_task(exchange.watch_client(deadline))
    try:
        yield
    finally:
        watcher.cancel()


def _explain(exchange: Exchange, choice: Choice) -> None:
    asked = exchange.headers.get("x-baton-explain") or exchange.query.get("explain")
    if asked in ("1", "true"):
        plan = choice.plan.header().encode("latin-1", "replace")
        exchange.extra_headers.append((b"x-baton-plan", plan))
        if choice.grammar_backend:
            backend = choice.grammar_backend.encode()
            exchange.extra_headers.append((b"x-baton-grammar-backend", backend))


def _seconds_header(exchange: Exchange, name: str) -> float | None:
    value = exchange.headers.get(name)
    if value is None:
        return None
    try:
        return float(value)
    except ValueError as error:
        raise InvalidRequestError(
            f"the header {name} is {value[:_MAX_HEADER_CHARS]!r}, but must be a number of seconds",
            param=name,
        ) from error
