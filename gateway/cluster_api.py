"""The cluster for operators: workers as this gateway sees them, and, where there is a cluster to
control, its configuration and pool sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from baton.gateway.config import GatewayConfig
from baton.gateway.exchange import Exchange
from baton.gateway.seam import ClusterControl, WorkerView
from baton.gateway.service import GatewayService
from baton.protos.errors import InvalidRequestError, NotFoundError, PermissionError_
from baton.protos.types import WorkerLoad

# A worker reports at least once a second; one that is silent for this long is shown as such.
STALE_AFTER_S = 5.0
T = TypeVar("T")


class WorkersEndpoint:
    """Answers with `{"workers": [...]}`, one object for each known worker, by role and id."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        document = {"workers": workers_document(self._service.fleet.workers())}
        await exchange.respond(msgspec.json.encode(document))


class PlansEndpoint:
    """`GET /debug/plans/{request id}`: why a request went where it went, and how it fared."""

    PREFIX = "/debug/plans/"

    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        request_id = exchange.scope["path"].removeprefix(self.PREFIX)
        plans = self._service.fleet.planner.explain(request_id)
        if not plans:
            raise NotFoundError(
                f"no decision for request {request_id[:128]} is remembered by this gateway: it "
                "was made by another one, or too long ago (fleet.explained_requests)"
            )
        await exchange.respond(msgspec.json.encode({"plans": plans}))


class ProfileBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which worker, and for how long at most."""

    worker: str
    seconds: float
    steps: int


class ControlEndpoints:
    """`GET /baton/config`, `GET /baton/scaling`, `POST /baton/scaling/apply`, `POST
    /baton/profile`.
    """

    def __init__(self, service: GatewayService, control: ClusterControl) -> None:
        self._service = service
        self._control = control

    async def config(self, exchange: Exchange) -> None:
        await exchange.respond(msgspec.json.encode(await self._control.config()))

    async def scaling(self, exchange: Exchange) -> None:
        await exchange.respond(msgspec.json.encode(await self._control.scaling()))

    async def apply(self, exchange: Exchange) -> None:
        pools = await self._body(exchange, dict[str, Any])
        await exchange.respond(msgspec.json.encode(await self._control.apply_scaling(pools)))

    async def profile(self, exchange: Exchange) -> None:
        body = await self._body(exchange, ProfileBody)
        trace = await self._control.profile(body.worker, seconds=body.seconds, steps=body.steps)
        exchange.extra_headers += [
            (b"x-baton-worker", trace.worker_id.encode()),
            (b"x-baton-steps", str(trace.num_steps).encode()),
        ]
        await exchange.respond(trace.data, content_type=b"application/gzip")

    async def _body(self, exchange: Exchange, kind: type[T]) -> T:
        """Of an admin."""
        config = self._service.config
        require_admin(config, exchange)
        raw = await exchange.read_body(config.max_body_bytes, config.body_timeout_s)
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise InvalidRequestError(f"the body is not what it must be: {error}") from error


def require_admin(config: GatewayConfig, exchange: Exchange) -> None:
    """Raises PermissionError_ unless the tenant is an admin, or nobody needs a key."""
    tenants = config.every_tenant
    if tenants and not any(t.admin for t in tenants if t.name == exchange.tenant):
        raise PermissionError_(
            f"the tenant {exchange.tenant!r} may not change the cluster: use a key of a tenant "
            "with `admin: true`"
        )


def workers_document(views: Sequence[WorkerView]) -> list[dict[str, Any]]:
    """Plain values of every view. `age_s`: seconds since its last report, null before the first."""
    ordered = sorted(views, key=lambda v: (v.member.role.value, v.member.worker_id))
    return [_worker(view) for view in ordered]


def _worker(view: WorkerView) -> dict[str, Any]:
    member = view.member
    return {
        "worker_id": member.worker_id,
        "role": member.role.value,
        "state": _state(view),
        "address": member.address,
        "incarnation": member.incarnation,
        "model": member.model,
        "age_s": round(view.age_s, 3) if math.isfinite(view.age_s) else None,
        "in_flight_requests": view.in_flight_requests,
        "load": _figures(view.load),
        "adapters": sorted(view.adapters),
    }


def _figures(load: WorkerLoad) -> dict[str, Any]:
    """The load without the samples that models are learned from."""
    bare = dataclasses.replace(load, steps=(), transfers=(), kv_digest=None, tiers=())
    figures = {
        name: value for name, value in dataclasses.asdict(bare).items() if value not in ((), None)
    }
    return figures | {"tiers": [tier._asdict() for tier in load.tiers]} if load.tiers else figures


def _state(view: WorkerView) -> str:
    if view.load.draining:
        return "draining"
    return "up" if view.age_s <= STALE_AFTER_S else "silent"
