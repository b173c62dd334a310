"""The replicas of the Serve deployments: thin shells around a worker or a gateway.

A shell gives its worker an identity, keeps it listed in the directory, answers Serve's health
checks, and drains it when Serve tells it to leave. Requests and tokens never come through here.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import ray
from ray import serve, util

from baton.cluster.adapter_followers import WorkerAdapters, begin_modules
from baton.cluster.config import BatonConfig, PoolConfig
from baton.cluster.directory import GatewayMember, StartFailure
from baton.cluster.directory_actor import RayDirectoryClient
from baton.cluster.membership import (
    DemandReporter,
    DirectoryClient,
    DirectoryReader,
    Membership,
)
from baton.cluster.scaling import replica_stats
from baton.decode_worker.config import DecodeWorkerConfig
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.protos.adapters import AdapterRef
from baton.protos.errors import BatonError, UnavailableError
from baton.protos.logs import start_logging
from baton.protos.types import Member, WorkerLoad
from baton.router.scaling_signals import Demand

log = logging.getLogger(__name__)
T = TypeVar("T")
# The engine's thread lets go of the interpreter lock only for moments, too short for a thread that
# the kernel has to wake first: the event loop, with a token to send, would wait for the whole of
# Python's default of 5 ms. The engine pays a switch of some 10 microseconds for each message.
SWITCH_INTERVAL_S = 1e-4
# Of a Ray node: machines with equal ones share a switch.
RACK_LABEL = "baton.rack"


class Worker(Protocol):
    """What a shell needs of a prefill or decode worker. `failure`: why it can do no more work."""

    @property
    def failure(self) -> BaseException | None: ...

    async def start(self) -> Member: ...
    async def load(self) -> WorkerLoad: ...
    async def load_adapter(self, ref: AdapterRef) -> None: ...
    async def unload_adapter(self, adapter_id: str) -> None: ...
    async def drain(self, grace_s: float) -> None: ...
    async def close(self) -> None: ...


class Gateway(Protocol):
    """What a shell needs of a gateway. `check_health` raises when it can serve no more."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    def check_health(self) -> None: ...
    async def demand(self) -> Demand: ...
    def http_url(self, host: str) -> str: ...
    def grpc_address(self, host: str) -> str: ...


WorkerConfig = PrefillWorkerConfig | DecodeWorkerConfig


def make_worker(config: WorkerConfig) -> Worker:
    """The real worker for a configuration; imports torch, so it runs in the replica only."""
    ranks = None
    if config.engine.tensor_parallel_size > 1:
        from baton.cluster.rank_actors import RayRanks

        ranks = RayRanks(config.host, config.logs)
    if isinstance(config, PrefillWorkerConfig):
        from baton.prefill_worker.worker import PrefillWorker

        return PrefillWorker(config, ranks=ranks)
    from baton.decode_worker.worker import DecodeWorker

    return DecodeWorker(config, ranks=ranks)


def make_gateway(config: BatonConfig, directory: DirectoryReader, gateway_id: str) -> Gateway:
    """The real gateway; imported in the replica only, to keep the driver light."""
    from baton.cluster.gateway_process import GatewayProcess

    return GatewayProcess(config, directory, gateway_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factories:
    """What the shells are built around; another engine or gateway is another factory."""

    worker: Callable[[WorkerConfig], Worker] = make_worker
    gateway: Callable[[BatonConfig, DirectoryReader, str], Gateway] = make_gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which replica this is. A restarted replica is another incarnation of another replica."""

    replica_id: str
    incarnation: str

    @classmethod
    def of_this_replica(cls) -> Identity:
        context = serve.get_replica_context()
        replica_id = f"{context.deployment}-{context.replica_tag}"
        return cls(replica_id=replica_id, incarnation=uuid.uuid4().hex)


class WorkerReplica:
    """One prefill or decode worker: started by the constructor, drained by the destructor."""

    async def __init__(  # type: ignore[misc]  # Serve awaits a constructor that is a coroutine
        self, config: BatonConfig, pool: PoolConfig, factories: Factories
    ) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        me = Identity.of_this_replica()
        start_logging(config.logs, f"baton-{pool.role.value}", me.replica_id)
        client = RayDirectoryClient(config.name, config.directory)
        self._drain_s = pool.drain_s
        self._engine = pool.engine
        worker_config = replace(
            pool.worker,
            worker_id=me.replica_id,
            incarnation=me.incarnation,
            host=resolve_host(config.worker_host),
            rack=node_rack(),
            secret=config.secret,
            tracing=config.tracing,
            logs=config.logs,
        )
        self._worker = factories.worker(worker_config)
        member = await told(client, me, self._worker.start)
        self._adapters: WorkerAdapters | None = None
        if config.serves_adapters:
            self._adapters = await self._start_adapters(config, client, me)
        self._membership = Membership(client, member, config.directory)
        await self._membership.start()

    async def _start_adapters(
        self, config: BatonConfig, client: RayDirectoryClient, me: Identity
    ) -> WorkerAdapters:
        """Returns when the cluster's adapters are here, so that no request comes before."""
        adapters = WorkerAdapters(
            client,
            self._worker,
            worker_id=me.replica_id,
            incarnation=me.incarnation,
            poll_s=config.directory.heartbeat_s,
        )
        engine = self._engine
        await told(client, me, lambda: begin_modules(client, config.adapters, engine))
        await adapters.start()
        # Only `baton serve` listens, while it starts: later a worker serves what it could load.
        for failure in adapters.failures:
            await client.report_failure(
                StartFailure(replica_id=me.replica_id, code=failure.code, message=failure.message)
            )
        return adapters

    async def check_health(self) -> None:
        """Serve replaces this replica when it raises."""
        if self._worker.failure is not None:
            raise RuntimeError(f"the engine failed: {self._worker.failure}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """This replica's own figures for the scaling policies: Serve sees none of our requests."""
        engine = self._engine
        return replica_stats(
            await self._worker.load(),
            max_running=engine.max_running,
            block_size=engine.block_size,
        )

    async def __del__(self) -> None:
        """Serve awaits this within the pool's `drain_s` and a little more."""
        if self._adapters is not None:
            await self._adapters.close()
        await self._membership.close()
        await self._worker.drain(self._drain_s)
        await self._worker.close()


class GatewayReplica:
    """One gateway, serving HTTP and gRPC on ports of its own inside this process."""

    async def __init__(  # type: ignore[misc]  # as above
        self, config: BatonConfig, factories: Factories, *_pools: object
    ) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # `_pools` are the handles of the worker deployments: with them Serve deploys those too.
        me = Identity.of_this_replica()
        start_logging(config.logs, "baton-gateway", me.replica_id)
        client = RayDirectoryClient(config.name, config.directory)
        self._directory = DirectoryReader(client, config.directory)
        await self._directory.start()
        self._gateway = factories.gateway(config, self._directory, me.replica_id)
        await told(client, me, self._gateway.start)
        host = advertised_host(config)
        member = GatewayMember(
            gateway_id=me.replica_id,
            incarnation=me.incarnation,
            http_url=self._gateway.http_url(host),
            grpc_address=self._gateway.grpc_address(host),
        )
        self._membership = Membership(client, member, config.directory)
        await self._membership.start()
        self._reporter = DemandReporter(
            client, me.replica_id, self._gateway.demand, config.directory
        )
        self._reporter.start()

    async def check_health(self) -> None:
        """Serve replaces this replica when it raises."""
        self._gateway.check_health()

    async def __del__(self) -> None:
        await self._reporter.close()
        await self._membership.close()
        await self._gateway.close()
        await self._directory.close()


async def told(client: DirectoryClient, me: Identity, start: Callable[[], Awaitable[T]]) -> T:
    """Runs `start`; when that is refused, the directory is told why before the error goes on."""
    try:
        return await start()
    except (BatonError, OSError) as error:
        code = error.code if isinstance(error, BatonError) else "os_error"
        failure = StartFailure(replica_id=me.replica_id, code=code, message=str(error))
        try:
            await client.report_failure(failure)
        except UnavailableError as unreachable:
            log.warning("the directory was not told of a failed start: %s", unreachable)
        raise


def resolve_host(worker_host: str) -> str:
    """The address to bind and publish: "auto" is loopback on a one-machine Ray, else this node's
    own.
    """
    if worker_host != "auto":
        return worker_host
    return str(util.get_node_ip_address())


def node_rack() -> str:
    """The rack of this machine, by the label that its Ray node was started with."""
    return str(ray.get_runtime_context().get_node_labels().get(RACK_LABEL, ""))


def advertised_host(config: BatonConfig) -> str:
    """Where clients reach a gateway: a wildcard address says nothing, so this node's own stands for
    it.
    """
    host = config.gateway.host
    return resolve_host(config.worker_host) if host in ("0.0.0.0", "::", "") else host
