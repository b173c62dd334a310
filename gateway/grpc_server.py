"""The gRPC port: the Baton service beside health and reflection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from baton.gateway.grpc_service import BatonServicer
from baton.gateway.service import GatewayService
from baton.protos import public_pb2, public_pb2_grpc
from baton.protos.errors import ConfigError

_SERVICE = public_pb2.DESCRIPTOR.services_by_name["Baton"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_READY_POLL_S = 0.25
# In-flight requests have ended before the port closes; this is for idle streams such as Watch.
_CLOSE_S = 1.0


class GrpcFront:
    """Health says SERVING for "" while the process lives, and for the service while workers are
    ready.
    """

    def __init__(self, service: GatewayService) -> None:
        self._service = service
        self._health = HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Binds and serves. ConfigError if the port is taken."""
        config = self._service.config
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", config.max_body_bytes),
                ("grpc.so_reuseport", 0),
            )
        )
        public_pb2_grpc.add_BatonServicer_to_server(BatonServicer(self._service), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (_SERVICE, _HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.port = self._bind(server, f"{config.host}:{config.grpc_port}")
        await self._report(self._service.fleet.ready)
        await server.start()
        self._server = server
        self._watch = asyncio.create_task(self._watch_readiness())

    async def refuse_new(self) -> None:
        """Health turns to NOT_SERVING for good; admission refuses what still comes."""
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()

    async def close(self) -> None:
        """Closes the port."""
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None:
            await self._server.stop(_CLOSE_S)
            self._server = None

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        config = self._service.config
        try:
            if config.tls_cert_path is None or config.tls_key_path is None:
                return int(server.add_insecure_port(address))
            pair = (Path(config.tls_key_path).read_bytes(), Path(config.tls_cert_path).read_bytes())
            credentials = grpc.ssl_server_credentials((pair,))
            return int(server.add_secure_port(address, credentials))
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"grpc_port: {address} cannot be used: {error}", param="grpc_port"
            ) from error

    async def _watch_readiness(self) -> None:
        while True:
            await asyncio.sleep(_READY_POLL_S)
            await self._report(self._service.fleet.ready)

    async def _report(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(_SERVICE, status.SERVING if ready else status.NOT_SERVING)
