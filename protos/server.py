"""gRPC settings inside the cluster, and the two servers of a worker."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from baton.protos.errors import ConfigError
from baton.protos.stream_server import StreamServer
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
    """The streams of gateways and decode workers, and the same API by gRPC, with health.

    `port` is the streams', `grpc_port` gRPC's.
    """

    streams: StreamServer
    server: grpc.aio.Server
    grpc_port: int
    health: HealthServicer

    @property
    def port(self) -> int:
        return self.streams.port

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, and ends those that have not ended within `grace_s`."""
        await self.streams.stop(grace_s)
        await self.server.stop(grace_s)

    async def set_serving(self, serving: bool) -> None:
        """What the standard gRPC health check answers."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        await self.health.set("", status.SERVING if serving else status.NOT_SERVING)


async def start_worker_server(servicer: WorkerServicer, host: str, port: int) -> WorkerServer:
    """Serves the worker API: streams at `port` (0 takes any free one), and gRPC with its health
    service at a free port.

    Raises ConfigError when the port cannot be bound.
    """
    streams = StreamServer(servicer)
    await streams.start(host, port)
    server = grpc.aio.server(options=GRPC_OPTIONS)
    add_WorkerServicer_to_server(servicer, server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        bound = server.add_insecure_port(f"{host}:0")
    except RuntimeError as error:
        await streams.stop(0.0)
        raise ConfigError(f"no port of {host} can be bound: {error}", param="host") from error
    await server.start()
    running = WorkerServer(streams, server, bound, health)
    await running.set_serving(True)
    return running
