"""The public gRPC service of protos/public.proto: the same core as HTTP, with typed messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from baton.gateway.answers import Transcript
from baton.gateway.call import Job, TextPrompt, TokenPrompt
from baton.gateway.chat_request import plan_chat
from baton.gateway.choice import Choice
from baton.gateway.grpc_chat import call_delta_messages, call_messages, chat_ask
from baton.gateway.grpc_messages import generate_call, logprob_messages, usage_message
from baton.gateway.limits import Deadline
from baton.gateway.request_trace import log_failure
from baton.gateway.service import GatewayService
from baton.protos import public_pb2 as pb
from baton.protos import public_pb2_grpc
from baton.protos.errors import BatonError, InvalidRequestError, OverloadedError
from baton.protos.logs import fields

_log = logging.getLogger(__name__)


class BatonServicer(public_pb2_grpc.BatonServicer):
    """One method per RPC. A handler that is cancelled (the client left) closes its generation."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        response = pb.GenerateResponse(model=self._service.reported_model(request.model))
        opened = self._opened(request, context)
        async with self._rpc(context, "Generate", request.timeout_s), opened as (job, choice):
            response.request_id = job.call.request_id
            said = Transcript()
            async for delta in choice:
                said.add(delta)
            response.text, response.reasoning = said.text, "".join(said.reasoning)
            response.tool_calls.extend(call_messages(said.tool_calls()))
            response.token_ids.extend(said.token_ids)
            response.logprobs.extend(self._logprobs(said.logprobs))
            response.finish_reason = said.finish_reason or ""
            response.prompt_logprobs.extend(self._logprobs(choice.prompt_logprobs))
            response.usage.CopyFrom(usage_message(job.num_prompt_tokens, choice))
            _explain(request, context, choice)
        return response

    async def GenerateStream(self, request: pb.GenerateRequest, context: Any) -> None:
        opened = self._opened(request, context)
        async with self._rpc(context, "GenerateStream", request.timeout_s), opened as (job, choice):
            first = True
            async for delta in choice:
                chunk = pb.GenerateChunk(
                    request_id=job.call.request_id,
                    text=delta.text,
                    token_ids=delta.token_ids,
                    finish_reason=delta.finish_reason or "",
                    logprobs=self._logprobs(delta.logprobs),
                    prompt_logprobs=self._logprobs(choice.prompt_logprobs if first else ()),
                    reasoning=delta.reasoning,
                    tool_calls=call_delta_messages(delta.calls),
                )
                if delta.finish_reason is not None:
                    chunk.usage.CopyFrom(usage_message(job.num_prompt_tokens, choice))
                await context.write(chunk)
                first = False
                if self._service.pacer.pause_s and delta.finish_reason is None:
                    await asyncio.sleep(self._service.pacer.pause_s)
            _explain(request, context, choice)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        async with self._rpc(context, "Tokenize"):
            self._service.check_model(request.model or None)
            if request.WhichOneof("input") is None:
                raise InvalidRequestError("give one of prompt or chat", param="input")
            if request.WhichOneof("input") == "chat":
                plan = plan_chat(chat_ask(request.chat), self._service.dialect)
                ids = await self._service.tokenize(plan.prompt)
            else:
                special = not request.no_special_tokens
                ids = await self._service.tokenize(
                    TextPrompt(text=request.prompt, add_special_tokens=special)
                )
            return pb.TokenizeResponse(ids=ids, max_model_len=self._service.max_model_len)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        async with self._rpc(context, "Detokenize"):
            self._service.check_model(request.model or None)
            ids = await self._service.tokenize(TokenPrompt(token_ids=request.ids, param="ids"))
            return pb.DetokenizeResponse(text=self._service.tokenizer.decode(ids))

    async def Models(self, request: pb.ModelsRequest, context: Any) -> pb.ModelsResponse:
        async with self._rpc(context, "Models"):
            names, length = self._service.model_names, self._service.max_model_len
            models = [pb.Model(id=n, max_model_len=length, root=names[0]) for n in names]
            models += [
                pb.Model(id=name, max_model_len=length, root=adapter.path, parent=names[0])
                for name, adapter in self._service.adapters.adapters.items()
            ]
            return pb.ModelsResponse(models=models)

    @contextlib.asynccontextmanager
    async def _rpc(self, context: Any, method: str, wanted_s: float = 0.0) -> AsyncIterator[None]:
        """Authenticates, admits, counts and bounds one RPC; its errors become the RPC's status."""
        service = self._service
        try:
            with service.metrics.request(method):
                tenant = self._tenant(context)
                deadline = Deadline(self._timeout_s(context, wanted_s))
                with service.admission.admit(deadline, tenant):
                    async with deadline:
                        yield
        except BatonError as error:
            log_failure(error)
            await _abort(context, error)
        except Exception:
            incident = uuid.uuid4().hex
            about = fields(request_id=incident, rpc=method)
            _log.exception("an rpc failed unexpectedly", extra=about)
            await _abort(context, BatonError(f"internal error; its id is {incident}"))

    @contextlib.asynccontextmanager
    async def _opened(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[tuple[Job, Choice]]:
        """One prepared and started sequence."""
        received_s = self._service.clock.now_s()
        timeout_s = self._timeout_s(context, request.timeout_s)
        request_id, dialect = f"gen-{uuid.uuid4().hex}", self._service.dialect
        call = replace(
            generate_call(request, request_id, timeout_s, dialect),
            tenant=self._tenant(context),
            ttft_s=self._service.ttft_s(_ttft_s(context)),
            session=_metadata(context).get("x-baton-session", ""),
            traceparent=_metadata(context).get("traceparent", ""),
        )
        job = await self._service.prepare(call)
        async with self._service.open(job, received_s) as choices:
            yield job, choices[0]

    def _tenant(self, context: Any) -> str:
        return self._service.keys.check(_metadata(context).get("authorization"))

    def _timeout_s(self, context: Any, wanted_s: float) -> float:
        """The least of what the request, the client's deadline and the configuration allow."""
        timeout_s = self._service.timeout_s(wanted_s or None)
        remaining_s = context.time_remaining()
        return timeout_s if remaining_s is None else max(min(timeout_s, remaining_s), 1e-3)

    def _logprobs(self, entries: Any) -> list[pb.TokenLogprob]:
        return logprob_messages(self._service.tokenizer, entries)


def _metadata(context: Any) -> dict[str, Any]:
    return dict(context.invocation_metadata() or ())


def _ttft_s(context: Any) -> float | None:
    value = _metadata(context).get("x-baton-ttft-s")
    if value is None:
        return None
    try:
        return float(value)
    except ValueError as error:
        raise InvalidRequestError(
            f"the metadata x-baton-ttft-s is {value[:128]!r}, but must be a number of seconds",
            param="x-baton-ttft-s",
        ) from error


def _explain(request: pb.GenerateRequest, context: Any, choice: Choice) -> None:
    if request.explain:
        found = [("x-baton-plan", choice.plan.header())]
        if choice.grammar_backend:
            found.append(("x-baton-grammar-backend", choice.grammar_backend))
        context.set_trailing_metadata(tuple(found))


async def _abort(context: Any, error: BatonError) -> None:
    trailing = [("x-baton-error-code", error.code)]
    if error.param:
        trailing.append(("x-baton-error-param", error.param))
    if isinstance(error, OverloadedError):
        trailing.append(("retry-after", f"{error.retry_after_s:g}"))
    code = getattr(grpc.StatusCode, error.grpc_code)
    await context.abort(code, error.message, tuple(trailing))
