"""The ASGI application: routes, authentication, request ids, and every error as OpenAI's object."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive, Scope, Send

from baton.gateway.adapters_api import AdapterControl, AdapterEndpoints
from baton.gateway.call import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from baton.gateway.cluster_api import ControlEndpoints, PlansEndpoint, WorkersEndpoint
from baton.gateway.errors_http import error_body
from baton.gateway.exchange import Exchange
from baton.gateway.http_generate import GenerateEndpoint, read_chat, read_completion
from baton.gateway.limits import Deadline
from baton.gateway.openai_schema import DetokenizeBody, TokenizeBody
from baton.gateway.parse import Body, parse_body
from baton.gateway.request_trace import log_failure
from baton.gateway.seam import ClusterControl
from baton.gateway.service import GatewayService
from baton.protos.errors import (
    BatonError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from baton.protos.logs import fields

Handler = Callable[[Exchange], Awaitable[None]]

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MODELS = "/v1/models"
# What operators ask; like probes and scrapes it is no part of what clients see of the service.
_OPERATORS = ("/baton/", "/debug/")


class Route(NamedTuple):
    """What answers a path. Open routes need no API key: probes and scrapers have none."""

    method: str
    handler: Handler
    open: bool = False


class HttpApp:
    """One gateway's HTTP front. Health and metrics are open; everything else asks for a key."""

    def __init__(
        self,
        service: GatewayService,
        control: ClusterControl | None = None,
        adapters: AdapterControl | None = None,
    ) -> None:
        self._service = service
        self._created = int(time.time())
        self._routes = {
            "/v1/chat/completions": Route("POST", GenerateEndpoint(service, read_chat)),
            "/v1/completions": Route("POST", GenerateEndpoint(service, read_completion)),
            _MODELS: Route("GET", self._models),
            "/tokenize": Route("POST", self._tokenize),
            "/detokenize": Route("POST", self._detokenize),
            "/baton/workers": Route("GET", WorkersEndpoint(service)),
            "/health": Route("GET", self._health, open=True),
            "/ready": Route("GET", self._ready, open=True),
            "/metrics": Route("GET", self._metrics, open=True),
            "/version": Route("GET", self._version, open=True),
        }
        if control is not None:
            endpoints = ControlEndpoints(service, control)
            self._routes["/baton/config"] = Route("GET", endpoints.config)
            self._routes["/baton/scaling"] = Route("GET", endpoints.scaling)
            self._routes["/baton/scaling/apply"] = Route("POST", endpoints.apply)
            self._routes["/baton/profile"] = Route("POST", endpoints.profile)
        adapting = AdapterEndpoints(service, adapters)
        self._routes["/v1/load_lora_adapter"] = Route("POST", adapting.load)
        self._routes["/v1/unload_lora_adapter"] = Route("POST", adapting.unload)
        self._routes["/baton/adapters"] = Route("GET", adapting.status)
        self._plans = Route("GET", PlansEndpoint(service))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only http is served, not {scope['type']}")
        exchange = Exchange(scope, receive, send, uuid.uuid4().hex)
        try:
            await self._answer(exchange)
        except BatonError as error:
            log_failure(error, exchange.request_id, exchange.tenant)
            await exchange.fail(error)
        except Exception:
            about = fields(request_id=exchange.request_id, tenant=exchange.tenant)
            _log.exception("a request failed unexpectedly", extra=about)
            await exchange.fail(
                BatonError(f"internal error; its request id is {exchange.request_id}")
            )

    async def _answer(self, exchange: Exchange) -> None:
        exchange.use_request_id(_client_request_id(exchange))
        path, method = exchange.scope["path"], exchange.scope["method"]
        name, route = self._find(path)
        if method != route.method and not (method == "HEAD" and route.method == "GET"):
            await _refuse_method(exchange, route.method)
            return
        counted = not (route.open or path.startswith(_OPERATORS))
        with self._service.metrics.request(name) if counted else contextlib.nullcontext():
            if not route.open:
                authorization = exchange.headers.get("authorization")
                exchange.tenant = self._service.keys.check(authorization)
            await route.handler(exchange)

    def _find(self, path: str) -> tuple[str, Route]:
        route = self._routes.get(path)
        if route is not None:
            return path, route
        if path.startswith(_MODELS + "/"):
            return _MODELS + "/{id}", Route("GET", self._model)
        if path.startswith(PlansEndpoint.PREFIX):
            return PlansEndpoint.PREFIX + "{id}", self._plans
        raise NotFoundError(f"there is no {path[:128]} here: use one of {', '.join(self._routes)}")

    async def _models(self, exchange: Exchange) -> None:
        names = (*self._service.model_names, *self._service.adapters.adapters)
        models = [self._model_object(name) for name in names]
        await exchange.respond(msgspec.json.encode({"object": "list", "data": models}))

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.scope["path"].removeprefix(_MODELS + "/")
        self._service.check_model(name)
        await exchange.respond(msgspec.json.encode(self._model_object(name)))

    def _model_object(self, name: str) -> dict[str, Any]:
        base, adapter = self._service.model_names[0], self._service.adapters.adapters.get(name)
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "baton",
            "root": base if adapter is None else adapter.path,
            "parent": None if adapter is None else base,
            "max_model_len": self._service.max_model_len,
        }

    async def _tokenize(self, exchange: Exchange) -> None:
        async with self._admitted(exchange):
            body = await self._read(exchange, TokenizeBody)
            self._service.check_model(body.model)
            token_ids = await self._service.tokenize(_tokenize_prompt(body))
        name = self._service.tokenizer.token_text
        document = {
            "count": len(token_ids),
            "max_model_len": self._service.max_model_len,
            "tokens": token_ids,
            "token_strs": [name(i) for i in token_ids] if body.return_token_strs else None,
        }
        await exchange.respond(msgspec.json.encode(document))

    async def _detokenize(self, exchange: Exchange) -> None:
        decode = self._service.tokenizer.decode
        async with self._admitted(exchange):
            body = await self._read(exchange, DetokenizeBody)
            self._service.check_model(body.model)
            prompt = TokenPrompt(token_ids=body.tokens, param="tokens")
            token_ids = await self._service.tokenize(prompt)
            text = await self._service.off_loop(len(token_ids), lambda: decode(token_ids))
        await exchange.respond(msgspec.json.encode({"prompt": text}))

    async def _read(self, exchange: Exchange, model: type[Body]) -> Body:
        config = self._service.config
        raw = await exchange.read_body(config.max_body_bytes, config.body_timeout_s)
        return await self._service.off_loop(len(raw), lambda: parse_body(model, raw))

    @contextlib.asynccontextmanager
    async def _admitted(self, exchange: Exchange) -> AsyncIterator[None]:
        """Admission bounds the work that may wait for the tokenizer's threads."""
        deadline = Deadline(self._service.config.default_timeout_s)
        with self._service.admission.admit(deadline, exchange.tenant):
            async with deadline:
                yield

    async def _health(self, exchange: Exchange) -> None:
        await exchange.respond(b'{"status":"ok"}')

    async def _ready(self, exchange: Exchange) -> None:
        if self._service.admission.closing:
            raise UnavailableError("this gateway is shutting down")
        if not self._service.fleet.ready:
            raise UnavailableError("no decode worker is connected and ready yet")
        await exchange.respond(b'{"status":"ready"}')

    async def _metrics(self, exchange: Exchange) -> None:
        content_type = CONTENT_TYPE_LATEST.encode()
        await exchange.respond(self._service.metrics.render(), content_type=content_type)

    async def _version(self, exchange: Exchange) -> None:
        version = importlib.metadata.version("baton-serve")
        await exchange.respond(msgspec.json.encode({"version": version}))


def _client_request_id(exchange: Exchange) -> str:
    """The client's `x-request-id` if it sent one, else the one made here."""
    wanted = exchange.headers.get("x-request-id")
    if wanted is None:
        return exchange.request_id
    if not _REQUEST_ID.fullmatch(wanted):
        raise InvalidRequestError(
            "the header x-request-id must be 1 to 128 printable ASCII characters without spaces",
            param="x-request-id",
        )
    return wanted


def _tokenize_prompt(body: TokenizeBody) -> Prompt:
    if body.messages is None:
        return TextPrompt(
            text=body.prompt or "", add_special_tokens=body.add_special_tokens is not False
        )
    return ChatPrompt(
        messages=[message.for_template() for message in body.messages],
        tools=[tool.for_template() for tool in body.tools or ()],
        add_generation_prompt=body.add_generation_prompt,
        template_kwargs=body.chat_template_kwargs or {},
        add_special_tokens=bool(body.add_special_tokens),
    )


async def _refuse_method(exchange: Exchange, allowed: str) -> None:
    error = InvalidRequestError(
        f"{exchange.scope['method']} is not possible here: use {allowed}", code="method_not_allowed"
    )
    exchange.extra_headers.append((b"allow", allowed.encode()))
    await exchange.respond(error_body(error), status=405)
