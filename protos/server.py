"""gRPC settings that every connection inside the cluster shares, and a worker's server."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from baton.protos.errors import ConfigError
from baton.protos.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server

# Keepalives find half-open peers within 15 s; messages hold whole prompts and KV snapshots.
GRPC_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 256 << 20),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


class WorkerServer(NamedTuple):
    """A running server, the port it bound and its health service."""

    server: grpc.aio.Server
    port: int
    health: HealthServicer

    async def set_serving(self, serving: bool) -> None:
        """What the standard gRPC health check answers."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        await self.health.set("", status.SERVING if serving else status.NOT_SERVING)


async def start_worker_server(servicer: WorkerServicer, host: str, port: int) -> WorkerServer:
    """Serves the worker API and gRPC health. Port 0 takes any free one.

    Raises ConfigError when the port cannot be bound.
    """
    server = grpc.aio.server(options=GRPC_OPTIONS)
    add_WorkerServicer_to_server(servicer, server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigError(
            f"port is {port}, but {host}:{port} cannot be bound ({error}); 0 takes any free port",
            param="port",
        ) from error
    await server.start()
    running = WorkerServer(server, bound, health)
    await running.set_serving(True)
    return running
