"""The engine that a worker stands on: started, served, reported and stopped in one place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import torch

from baton.engine.adapters.adapters import AdapterStatistics
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.engine.parallel.hosts import RankHost
from baton.handover.config import WorkerConfig
from baton.handover.profile import Profiler, Recording
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.kvtransfer.factory import make_connector
from baton.kvtransfer.group import GroupConnector, OnNotice, rank_key
from baton.kvtransfer.hello import Identity, read_identity
from baton.kvtransfer.layout import KVLayout
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterLoad, AdapterRef
from baton.protos.convert import worker_hello
from baton.protos.errors import WorkerLostError
from baton.protos.feed import FeedHub, GatewayFeed
from baton.protos.reporter import Reporter
from baton.protos.server import start_worker_server
from baton.protos.tasks import TaskSet
from baton.protos.tracing import Tracing
from baton.protos.types import Member, Role, StepOutput, WorkerLoad
from baton.protos.worker_pb2_grpc import WorkerServicer

log = logging.getLogger(__name__)

MakeConnector = Callable[
    [str, torch.Tensor, KVLayout, PeerKey, Callable[[PeerKey, Notice], None], str], Connector
]


class Work(Protocol):
    """What a worker does on its host. All of it on the event loop."""

    def begin(self) -> WorkerServicer:
        """The engine and the connector are there; answers with the API to serve."""
        ...

    def dispatch(self, step: StepOutput) -> None: ...
    def on_notice(self, key: PeerKey, notice: Notice) -> None: ...
    def on_tick(self) -> None: ...
    def add_queue(self, load: WorkerLoad) -> WorkerLoad: ...

    def fail_all(self, error: WorkerLostError) -> None:
        """The engine is dead: nothing here can go on."""
        ...

    async def end(self) -> None:
        """The server still runs, the engine and the connector too."""
        ...


class WorkerHost:
    """One engine on its thread, its KV connector, its reports and its server, on one event loop.

    connectors: makes rank 0's KV connector; tests put their own faults into it.
    ranks: where the other ranks of a tensor-parallel model live; None: on this machine.
    """

    def __init__(
        self,
        config: WorkerConfig,
        role: Role,
        work: Work,
        *,
        ranks: RankHost | None = None,
        connectors: MakeConnector = make_connector,
    ) -> None:
        self.config = config
        self.hub = FeedHub()
        self.failure: BaseException | None = None
        self.tasks = TaskSet()
        self.tracing: Tracing | None = None
        self._adapter_names: dict[str, str] = {}
        # The engine's thread's own.
        self._recording: Recording | None = None
        self._role = role
        self._work = work
        self._ranks = ranks
        self._connectors = connectors

    async def start(self) -> Member:
        """Loads the model, registers the KV pool, binds the port.

        Raises ModelLoadError or ConfigError, with nothing left running.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self.member()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        self.events = asyncio.get_running_loop()
        if config.tracing:
            self.tracing = Tracing(f"baton-{self._role.value}", config.worker_id)
            stack.push_async_callback(asyncio.to_thread, self.tracing.close)
        self.engine = await asyncio.to_thread(Engine, config.engine, ranks=self._ranks)
        stack.callback(self.engine.close)
        self.loop = EngineLoop(self.engine, self._on_step, self._on_death)
        self.profiler = Profiler(self.loop, self._set_recording)
        self.reporter = Reporter(self.events, self.loop.call, self._work, self.hub)
        self.connector = await asyncio.to_thread(self._open_connector)
        stack.push_async_callback(asyncio.to_thread, self.connector.close)
        self.identity: Identity = read_identity(
            self.connector.local_info(),
            connector=config.connector,
            model_dir=config.engine.model_dir,
            model_digest=self.engine.model.digest,
            secret=config.secret,
        )
        self.loop.start()
        stack.push_async_callback(asyncio.to_thread, self.loop.stop)
        stack.push_async_callback(self._work.end)
        self._server = await start_worker_server(self._work.begin(), config.host, config.port)
        stack.push_async_callback(self._server.stop, 1.0)
        self.tasks.spawn(self.reporter.run(config.report_interval_s, self._on_tick))

    def member(self) -> Member:
        """This worker as the directory lists it."""
        config, model = self.config, self.engine.model
        return Member(
            worker_id=config.worker_id,
            incarnation=config.incarnation,
            role=self._role,
            address=f"{config.host}:{self._server.port}",
            model=config.model_name or model.name,
            model_digest=model.digest,
            rack=config.rack,
            grpc_address=f"{config.host}:{self._server.grpc_port}",
        )

    def hello(self) -> pb.WorkerHello:
        """What a gateway learns first."""
        model = self.engine.model
        return worker_hello(
            self.member(),
            block_size=self.config.engine.block_size,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
        )

    def add_prompt(
        self,
        command: Callable[[Engine], None],
        num_tokens: int,
        on_refused: Callable[[BaseException], None],
    ) -> None:
        """Gives the engine a prompt of so many tokens; reports count it from now on."""

        def counted(engine: Engine) -> None:
            self.reporter.taken(num_tokens)
            command(engine)

        self.reporter.given(num_tokens)
        self.command(counted, on_refused)

    def command(
        self, command: Callable[[Engine], None], on_refused: Callable[[BaseException], None]
    ) -> None:
        """Runs it on the engine's thread; only what it raises comes back to the event loop, which
        a thread that is about to compute should not wake for nothing.
        """

        def tell(done: Future[None]) -> None:
            error = done.exception()
            if error is not None:
                self.events.call_soon_threadsafe(on_refused, error)

        self.loop.call(command).add_done_callback(tell)

    async def join(self, feed: GatewayFeed) -> None:
        """Adds a gateway: its stream begins with a snapshot of this worker's prefix cache."""
        await self.reporter.join(feed)

    async def close(self) -> None:
        """Stops everything."""
        await self.tasks.cancel()
        self.hub.close()
        await self._stack.aclose()

    async def load(self) -> WorkerLoad:
        """The load as the next report will tell it."""
        return await self.reporter.load()

    async def load_adapter(self, ref: AdapterRef) -> None:
        """Reads it into memory; from then on requests may name its id. Raises AdapterError."""
        await asyncio.to_thread(self.engine.adapters.load, ref)
        self._adapter_names[ref.adapter_id] = ref.name

    async def unload_adapter(self, adapter_id: str) -> None:
        """Takes no more requests for it. Raises AdapterNotFoundError."""
        await asyncio.to_thread(self.engine.adapters.unload, adapter_id)
        self._adapter_names.pop(adapter_id, None)

    def adapter_name(self, adapter_id: str) -> str:
        """What clients call it, for logs; of one that was unloaded meanwhile, its id."""
        return self._adapter_names.get(adapter_id, adapter_id)

    async def check_integrity(self) -> None:
        """Proves that no block is lost; raises BatonError otherwise."""
        await asyncio.wrap_future(self.loop.call(Engine.check_integrity))

    def _open_connector(self) -> Connector:
        """One for all tensor-parallel ranks; with a single rank it adds nothing but its name."""
        config, pool = self.config, self.engine.pool
        name, host = config.wire, config.host
        key = PeerKey(config.worker_id, config.incarnation)

        def own(on_notice: OnNotice) -> Connector:
            return self._connectors(name, pool.tensor, pool.layout, key, on_notice, host)

        others = [
            partial(rank.open, name, rank_key(key, index), host)
            for index, rank in enumerate(self.engine.other_pools, 1)
        ]
        return GroupConnector([own, *others], on_notice=self._on_notice)

    def _on_tick(self) -> None:
        self._work.on_tick()
        if self.config.engine.max_loras:
            self.hub.broadcast_adapters(adapter_load(self.engine.adapters.resident()))

    def _on_step(self, step: StepOutput) -> None:
        """On the engine's thread."""
        self.reporter.after_step(self.engine, step, self._work.dispatch)
        if self._recording is not None:
            self._recording.after_step()

    def _set_recording(self, recording: Recording | None) -> None:
        self._recording = recording

    def _on_notice(self, key: PeerKey, notice: Notice) -> None:
        """On the connector's thread."""
        self.events.call_soon_threadsafe(self._work.on_notice, key, notice)

    def _on_death(self, error: BaseException) -> None:
        """On the engine's thread: nothing here can go on, but every request can, elsewhere."""
        log.error("%s: the engine failed", self.config.worker_id, exc_info=error)
        self.events.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._work.fail_all(WorkerLostError(f"{self.config.worker_id}'s engine failed: {error}"))
        self.tasks.spawn(self._server.set_serving(False))


def adapter_load(statistics: AdapterStatistics) -> AdapterLoad:
    """An engine's adapters as gateways are told of them."""
    resident = [adapter for adapter in statistics.adapters if adapter.on_device]
    return AdapterLoad(
        resident=tuple(adapter.ref.adapter_id for adapter in resident),
        num_rows=tuple(adapter.num_rows for adapter in resident),
        num_loaded=len(statistics.adapters),
        num_loads=statistics.num_loads,
        load_s=statistics.load_s,
        num_copies=statistics.num_copies,
        copy_s=statistics.copy_s,
        num_evictions=statistics.num_evictions,
        num_hits=statistics.num_hits,
    )
