"""One gateway: HTTP and gRPC over one service, in the event loop that starts it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from baton.gateway.adapters_api import AdapterControl
from baton.gateway.config import GatewayConfig
from baton.gateway.grpc_server import GrpcFront
from baton.gateway.http_app import HttpApp
from baton.gateway.seam import ClusterControl, Fleet
from baton.gateway.service import GatewayService
from baton.gateway.tokenizer import Tokenizer, load_tokenizer
from baton.protos.clock import Clock
from baton.protos.errors import BatonError, ConfigError

_BACKLOG = 2048
# After the drain nothing is in flight: this only closes idle connections.
_CLOSE_S = 5.0


class GatewayServer:
    """Starts and stops both fronts. `fleet` is the caller's: start it before, close it after.
    With `control` operators may ask about the cluster and resize its pools, with `adapters` load
    and unload adapters.

    uvloop as the running loop gives the best streaming rate; any asyncio loop works.
    """

    def __init__(
        self,
        config: GatewayConfig,
        fleet: Fleet,
        *,
        tokenizer: Tokenizer | None = None,
        clock: Clock | None = None,
        control: ClusterControl | None = None,
        adapters: AdapterControl | None = None,
    ) -> None:
        self._control = control
        self._adapters = adapters
        self._config = config
        self._fleet = fleet
        self._tokenizer = tokenizer
        self._clock = clock
        self._service: GatewayService | None = None
        self._http: _Uvicorn | None = None
        self._http_task: asyncio.Task[None] | None = None
        self._grpc: GrpcFront | None = None
        self._http_port = 0

    @property
    def service(self) -> GatewayService:
        """The core; only while started."""
        if self._service is None:
            raise BatonError("the gateway has not started")
        return self._service

    @property
    def http_port(self) -> int:
        """The port that HTTP is served on; 0 before start."""
        return self._http_port

    @property
    def grpc_port(self) -> int | None:
        """The port that gRPC is served on; None if it is off or has not started."""
        return self._grpc.port if self._grpc is not None else None

    async def start(self) -> None:
        """Loads the tokenizer and binds the ports. ModelLoadError; ConfigError if a port is
        taken.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            tokenizer = await asyncio.to_thread(load_tokenizer, self._config.model_dir)
        table = None if self._adapters is None else self._adapters.table
        service = GatewayService(
            self._config, self._fleet, tokenizer, clock=self._clock, adapters=table
        )
        if (control := self._control) is not None:
            service.metrics.targets = lambda: control.targets
        self._service = service
        service.start()
        try:
            await self._start_http(service)
            if self._config.grpc_port is not None:
                grpc_front = GrpcFront(service)
                await grpc_front.start()
                self._grpc = grpc_front
        except BaseException:
            await self.close(0.0)
            raise

    async def close(self, grace_s: float | None = None) -> None:
        """Refuses new requests, lets running ones finish for `grace_s` (None: drain_grace_s),
        stops.
        """
        if self._service is None:
            return
        grace = self._config.drain_grace_s if grace_s is None else grace_s
        if self._grpc is not None:
            await self._grpc.refuse_new()
        await self._service.admission.drain(grace)
        if self._grpc is not None:
            await self._grpc.close()
            self._grpc = None
        if self._http is not None and self._http_task is not None:
            self._http.should_exit = True
            await self._http_task
            self._http = self._http_task = None
        self._service.close()
        self._service = None

    async def _start_http(self, service: GatewayService) -> None:
        _check_tls_files(self._config)
        listener = _bind(self._config.host, self._config.http_port)
        self._http_port = listener.getsockname()[1]
        server = _Uvicorn(
            uvicorn.Config(
                HttpApp(service, self._control, self._adapters),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=self._config.keep_alive_s,
                timeout_graceful_shutdown=int(_CLOSE_S),
                ssl_certfile=self._config.tls_cert_path,
                ssl_keyfile=self._config.tls_key_path,
            )
        )
        self._http = server
        self._http_task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            if self._http_task.done():
                await self._http_task
                raise BatonError("the HTTP server ended before it had started")
            await asyncio.sleep(0.005)


class _Uvicorn(uvicorn.Server):
    """A server inside somebody else's process: signals are not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _check_tls_files(config: GatewayConfig) -> None:
    for name in ("tls_cert_path", "tls_key_path"):
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{name}: {path} does not exist", param=name)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"http_port {port} of {host} cannot be used: {error}", param="http_port"
        ) from error
    listener.setblocking(False)
    return listener
