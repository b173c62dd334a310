"""One gateway on a thread of its own, with a faster event loop than the one that Serve gives a
replica.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Coroutine
from typing import TypeVar

import uvloop

from baton.cluster.adapter_control import ClusterAdapters
from baton.cluster.config import BatonConfig
from baton.cluster.control import ScalingControl
from baton.cluster.directory_actor import RayDirectoryClient
from baton.cluster.membership import DirectoryReader
from baton.gateway.config import GatewayConfig
from baton.gateway.fleet import Fleet
from baton.gateway.server import GatewayServer
from baton.protos.errors import ConfigError, UnavailableError
from baton.protos.tracing import Tracing
from baton.router.scaling_signals import Demand

T = TypeVar("T")
PORTS = ("http_port", "grpc_port")
BIND_WAIT_S = 5.0


def with_port_offset(config: GatewayConfig, offset: int) -> GatewayConfig:
    """The configuration with its ports moved; free and absent ports stay so."""
    ports = {name: getattr(config, name) for name in PORTS}
    moved = {name: port + offset if port else port for name, port in ports.items()}
    return dataclasses.replace(config, **moved)


def port_choices(config: BatonConfig) -> list[GatewayConfig]:
    """What one of a node's gateways may bind, first choice first: 8000 and 8001, then 8010 and
    8011.
    """
    step = config.gateway_port_step
    offsets = [k * step for k in range(config.gateway_replicas)] if step else [0]
    return [with_port_offset(config.gateway, offset) for offset in offsets]


class GatewayProcess:
    """A `GatewayServer` and its `Fleet` on a uvloop thread, used from another event loop."""

    def __init__(self, config: BatonConfig, directory: DirectoryReader, gateway_id: str) -> None:
        self._config = config
        self._directory = directory
        self._gateway_id = gateway_id
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True)
        self._control = ScalingControl(config, directory)
        self._adapters: ClusterAdapters | None = None
        if config.serves_adapters:
            client = RayDirectoryClient(config.name, config.directory)
            self._adapters = ClusterAdapters(config, client)
        self._fleet: Fleet | None = None
        self._server: GatewayServer | None = None
        self._tracing = Tracing("baton-gateway", gateway_id) if config.tracing else None

    async def start(self) -> None:
        """Binds the ports and begins to connect to workers. Raises ConfigError or OSError."""
        self._thread.start()
        await self._on_loop(self._start())

    async def close(self) -> None:
        """Lets requests finish within the gateway's `drain_grace_s`, then stops everything."""
        await self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, 5.0)

    def check_health(self) -> None:
        """Raises UnavailableError when the thread that serves is gone."""
        if not self._thread.is_alive():
            raise UnavailableError("the gateway's thread has ended")

    async def demand(self) -> Demand:
        """What reached it since the last call."""

        async def take() -> Demand:
            return Demand() if self._fleet is None else self._fleet.demand()

        return await self._on_loop(take())

    def http_url(self, host: str) -> str:
        """The base URL at `host`, without a path."""
        scheme = "https" if self._config.gateway.tls_cert_path else "http"
        return f"{scheme}://{host}:{self._running.http_port}"

    def grpc_address(self, host: str) -> str:
        """host:port of the public gRPC service; empty when it is off."""
        port = self._running.grpc_port
        return "" if port is None else f"{host}:{port}"

    @property
    def _running(self) -> GatewayServer:
        if self._server is None:
            raise UnavailableError("the gateway has not started")
        return self._server

    async def _on_loop(self, work: Coroutine[None, None, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _start(self) -> None:
        self._fleet = Fleet(
            self._directory,
            self._config.router,
            gateway_id=self._gateway_id,
            secret=self._config.secret,
            config=self._config.fleet,
            admission=self._config.gateway.admission,
            tenants=self._config.gateway.every_tenant,
            tracing=self._tracing,
        )
        await self._fleet.start()
        if self._adapters is not None:
            await self._adapters.start()
        self._server = await self._serve(self._fleet)

    async def _serve(self, fleet: Fleet) -> GatewayServer:
        """On the configured ports, or the next ones where another gateway of this node has those.

        A gateway that this one replaces may hold them for a moment still. Raises ConfigError.
        """
        choices = port_choices(self._config)
        deadline_s = time.monotonic() + BIND_WAIT_S
        for config in itertools.cycle(choices):
            server = GatewayServer(config, fleet, control=self._control, adapters=self._adapters)
            try:
                await server.start()
            except ConfigError as error:
                if error.param not in PORTS or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.2)
            else:
                return server
        raise AssertionError("a cycle of one or more has no end")

    async def _close(self) -> None:
        if self._server is not None:
            await self._server.close()
        if self._adapters is not None:
            await self._adapters.close()
        if self._fleet is not None:
            await self._fleet.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
