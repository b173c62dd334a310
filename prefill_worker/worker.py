"""The prefill worker: computes prompts for decode workers and pushes their KV there."""

from __future__ import annotations

import asyncio
import logging

from baton.engine.parallel.hosts import RankHost
from baton.handover.host import MakeConnector, WorkerHost
from baton.handover.sender import PromptSender
from baton.handover.service import WorkerService
from baton.kvtransfer.connector import Notice, PeerKey
from baton.kvtransfer.factory import make_connector
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.protos import worker_pb2 as pb
from baton.protos.adapters import AdapterRef
from baton.protos.clock import Clock, SystemClock
from baton.protos.errors import UnavailableError, WorkerLostError
from baton.protos.feed import GatewayFeed
from baton.protos.reporter import with_queue
from baton.protos.types import Member, Role, StepOutput, WorkerLoad
from baton.protos.worker_pb2_grpc import WorkerServicer

log = logging.getLogger(__name__)


class PrefillWorker:
    """One prefill worker on one event loop. `start` before anything else, `close` at the end.

    ranks: where the other ranks of a tensor-parallel model live; None: on this machine.
    """

    def __init__(
        self,
        config: PrefillWorkerConfig,
        *,
        clock: Clock | None = None,
        ranks: RankHost | None = None,
        connectors: MakeConnector = make_connector,
    ) -> None:
        self.config = config
        self._clock = clock or SystemClock()
        self._draining = False
        self._host = WorkerHost(config, Role.PREFILL, self, ranks=ranks, connectors=connectors)

    async def start(self) -> Member:
        """Loads the model, registers the KV pool, binds the port.

        Raises ModelLoadError or ConfigError, with nothing left running.
        """
        return await self._host.start()

    @property
    def host(self) -> WorkerHost:
        """The engine and what surrounds it."""
        return self._host

    @property
    def failure(self) -> BaseException | None:
        """Why this worker can do no more, once that is so."""
        return self._host.failure

    def submit(self, feed: GatewayFeed, submit: pb.Submit) -> None:
        """Refused: a gateway only listens here."""
        refusal = "a prefill worker takes prompts from decode workers only"
        feed.done(
            pb.Done(
                handle=submit.handle,
                finish_reason="error",
                error_code="invalid_value",
                error_message=refusal,
            )
        )

    def connect(self, target: pb.PrefillTarget) -> None:
        """See `GatewaySide`: pulls are planned from decode workers only."""

    def abort(self, feed: GatewayFeed, handle: int) -> None:
        """Nothing of a gateway's is here."""

    def leave(self, feed: GatewayFeed) -> None:
        """A gateway is gone."""
        self._host.hub.leave(feed)

    async def drain(self, grace_s: float) -> None:
        """Takes no new prompts, waits for the taken ones, refuses the rest after `grace_s`."""
        self._draining = True
        self._sender.refuse_new()
        end_s = self._clock.now_s() + grace_s
        while self._clock.now_s() < end_s and len(self._sender):
            await asyncio.sleep(0.05)
        self._sender.fail_all(UnavailableError(f"{self.config.worker_id} is leaving"))
        await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Stops everything; prompts still here are refused, so that their owners go elsewhere."""
        await self.drain(0.0)
        await self._host.close()

    def num_requests(self) -> int:
        """Prompts that are waiting, running or being sent."""
        return len(self._sender)

    async def load(self) -> WorkerLoad:
        """The load as the next report will tell it."""
        return await self._host.load()

    async def load_adapter(self, ref: AdapterRef) -> None:
        """See `WorkerHost.load_adapter`."""
        await self._host.load_adapter(ref)

    async def unload_adapter(self, adapter_id: str) -> None:
        """See `WorkerHost.unload_adapter`."""
        await self._host.unload_adapter(adapter_id)

    async def check_integrity(self) -> None:
        """Proves that no block is lost; raises BatonError otherwise."""
        await self._host.check_integrity()

    def begin(self) -> WorkerServicer:
        """See `Work`."""
        self._sender = PromptSender(self._host, self._clock)
        return WorkerService(self, self._host, self._sender)

    def dispatch(self, step: StepOutput) -> None:
        """See `Work`."""
        self._sender.dispatch(step)

    def on_notice(self, key: PeerKey, notice: Notice) -> None:
        """See `Work`."""
        self._sender.pulls.on_notice(key, notice)

    def on_tick(self) -> None:
        """See `Work`."""
        self._sender.start_waiting()

    def add_queue(self, load: WorkerLoad) -> WorkerLoad:
        """The engine's load, with the prompts that it has not been given yet."""
        load = self._sender.add_queue(load)
        return with_queue(
            load,
            num_waiting=load.num_waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            draining=self._draining,
        )

    def fail_all(self, error: WorkerLostError) -> None:
        """See `Work`."""
        self._sender.fail_all(error)

    async def end(self) -> None:
        """See `Work`. Streams end with the server."""
