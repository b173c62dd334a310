"""The endpoints that load and unload adapters, with vLLM's paths and bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from pydantic import Field

from baton.gateway.adapters import AdapterTable
from baton.gateway.cluster_api import require_admin
from baton.gateway.exchange import Exchange
from baton.gateway.openai_messages import StrictModel
from baton.gateway.parse import Body, parse_body
from baton.gateway.service import GatewayService
from baton.protos.errors import InvalidRequestError, NotFoundError


class AdapterControl(Protocol):
    """What an operator may ask of the cluster's adapters through a gateway. Raises BatonError."""

    @property
    def table(self) -> AdapterTable:
        """What this gateway's requests may name."""

    async def load(self, name: str, path: str, *, force: bool) -> Mapping[str, Any]:
        """On every worker or none; returns when every gateway serves it."""

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Returns when no gateway takes new requests for it; those that run go on."""

    async def status(self) -> Mapping[str, Any]:
        """The set, what still drains, and what workers could not load."""


class LoadAdapterBody(StrictModel):
    """POST /v1/load_lora_adapter. `load_inplace` is vLLM's word for `force`."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)
    force: bool = False
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadAdapterBody(StrictModel):
    """POST /v1/unload_lora_adapter. Adapters have names only: `lora_int_id` is refused."""

    lora_name: str = Field(min_length=1)
    lora_int_id: int | None = None


class AdapterEndpoints:
    """`POST /v1/load_lora_adapter`, `POST /v1/unload_lora_adapter`, `GET /baton/adapters`."""

    def __init__(self, service: GatewayService, control: AdapterControl | None) -> None:
        self._service = service
        self._given = control

    @property
    def _control(self) -> AdapterControl:
        if self._given is None:
            raise NotFoundError(
                "this cluster serves no adapters: start it with --max-loras (docs/adapters.md)"
            )
        return self._given

    async def load(self, exchange: Exchange) -> None:
        control, body = self._control, await self._read(exchange, LoadAdapterBody)
        if body.is_3d_lora_weight:
            raise InvalidRequestError(
                "is_3d_lora_weight is not supported: give expert projections one by one",
                param="is_3d_lora_weight",
            )
        force = body.force or body.load_inplace
        answer = await control.load(body.lora_name, body.lora_path, force=force)
        await exchange.respond(msgspec.json.encode(answer))

    async def unload(self, exchange: Exchange) -> None:
        control, body = self._control, await self._read(exchange, UnloadAdapterBody)
        if body.lora_int_id is not None:
            raise InvalidRequestError(
                "lora_int_id is not used here: give lora_name alone", param="lora_int_id"
            )
        answer = await control.unload(body.lora_name)
        await exchange.respond(msgspec.json.encode(answer))

    async def status(self, exchange: Exchange) -> None:
        await exchange.respond(msgspec.json.encode(await self._control.status()))

    async def _read(self, exchange: Exchange, model: type[Body]) -> Body:
        config = self._service.config
        require_admin(config, exchange)
        return parse_body(
            model, await exchange.read_body(config.max_body_bytes, config.body_timeout_s)
        )
