"""Both ends of the adapter board, without Ray: a worker that holds what is wanted, a gateway that
serves what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from baton.cluster.adapter_config import AdaptersConfig
from baton.cluster.adapter_orders import (
    NO_MARK,
    AdapterOrders,
    GatewayReport,
    LoadFailure,
    Mark,
    WorkerReport,
    failure_of,
)
from baton.engine.adapters.folder import describe_adapter
from baton.engine.config import EngineConfig
from baton.engine.model_info import read_model_spec
from baton.gateway.adapters import AdapterTable
from baton.protos.adapters import AdapterRef
from baton.protos.errors import BatonError, UnavailableError

log = logging.getLogger(__name__)
T = TypeVar("T")


class AdapterClient(Protocol):
    """The board as a coroutine API. An answer comes when there are other orders than `report.mark`,
    or with None after `hold_s`. UnavailableError while it cannot be reached.
    """

    async def work_adapters(self, report: WorkerReport, hold_s: float) -> AdapterOrders | None: ...
    async def serve_adapters(
        self, report: GatewayReport, hold_s: float
    ) -> AdapterOrders | None: ...


class AdapterHost(Protocol):
    """A worker that can hold adapters. Both raise BatonError."""

    async def load_adapter(self, ref: AdapterRef) -> None: ...
    async def unload_adapter(self, adapter_id: str) -> None: ...


class WorkerAdapters:
    """Keeps a worker at what the board wants, from `start` to `close`.

    `start` returns when the worker holds all of it, so that it takes no request before: what cannot
    be loaded then is reported, and does not keep the worker from serving the rest.
    """

    def __init__(
        self,
        client: AdapterClient,
        host: AdapterHost,
        *,
        worker_id: str,
        incarnation: str,
        poll_s: float,
    ) -> None:
        self._client = client
        self._host = host
        self._poll_s = poll_s
        self._report = WorkerReport(worker_id=worker_id, incarnation=incarnation, ready=False)
        self._held: dict[str, AdapterRef] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the whole set, then keeps following it."""
        while True:
            answered, orders = await self._ask(hold_s=0.0)
            if orders is not None:
                await self._apply(orders)
            elif answered and self._report.ready:
                break
            elif answered:
                # All is loaded. Said once more as one who is waited for: what comes after that
                # is not committed without this worker.
                self._set_report(self._report.mark, self._report.failures, ready=True)
        self._task = asyncio.create_task(self._follow())

    @property
    def failures(self) -> tuple[LoadFailure, ...]:
        """What could not be loaded of what is wanted."""
        return self._report.failures

    async def close(self) -> None:
        if self._task is not None:
            await _stop(self._task)
            self._task = None

    async def _follow(self) -> None:
        while True:
            _, orders = await self._ask(self._poll_s)
            if orders is not None:
                await self._apply_alive(orders)

    async def _apply_alive(self, orders: AdapterOrders) -> None:
        """Goes on saying that it lives while it loads."""
        work = asyncio.create_task(self._apply(orders))
        try:
            while not (await asyncio.wait({work}, timeout=self._poll_s))[0]:
                await self._ask(hold_s=0.0)
            await work
        finally:
            work.cancel()

    async def _ask(self, hold_s: float) -> tuple[bool, AdapterOrders | None]:
        """Whether the board answered, and new orders if there are any."""
        ask = self._client.work_adapters
        return await _tried(lambda: ask(self._report, hold_s), self._poll_s)

    async def _apply(self, orders: AdapterOrders) -> None:
        wanted = {ref.adapter_id: ref for ref in orders.wanted}
        for adapter_id in self._held.keys() - wanted.keys():
            del self._held[adapter_id]
            await self._try(adapter_id, self._host.unload_adapter(adapter_id))
        failures = []
        for adapter_id, ref in wanted.items():
            if adapter_id not in self._held:
                failure = await self._try(adapter_id, self._host.load_adapter(ref))
                if failure is None:
                    self._held[adapter_id] = ref
                else:
                    failures.append(failure)
        self._set_report(orders.mark, tuple(failures), ready=self._report.ready)

    async def _try(self, adapter_id: str, work: Awaitable[None]) -> LoadFailure | None:
        try:
            await work
        except BatonError as error:
            log.warning("adapter %s: %s", adapter_id, error)
            return failure_of(error, self._report.worker_id, adapter_id)
        return None

    def _set_report(self, mark: Mark, failures: tuple[LoadFailure, ...], *, ready: bool) -> None:
        self._report = WorkerReport(
            worker_id=self._report.worker_id,
            incarnation=self._report.incarnation,
            ready=ready,
            mark=mark,
            failures=failures,
        )


class GatewayAdapters:
    """Keeps a gateway's table at the board's set, and tells of what is still used."""

    def __init__(
        self, client: AdapterClient, table: AdapterTable, *, incarnation: str, poll_s: float
    ) -> None:
        self._client = client
        self._table = table
        self._incarnation = incarnation
        self._poll_s = poll_s
        self._mark = NO_MARK
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes the set if the board answers; if not, it is asked again and again."""
        await self._ask(hold_s=0.0)
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._task is not None:
            await _stop(self._task)
            self._task = None

    async def _follow(self) -> None:
        while True:
            await self._ask(self._poll_s)

    async def _ask(self, hold_s: float) -> None:
        table, ask = self._table, self._client.serve_adapters
        report = GatewayReport(
            incarnation=self._incarnation,
            mark=self._mark,
            generation=table.generation,
            leftover=table.leftover(),
        )
        _, orders = await _tried(lambda: ask(report, hold_s), self._poll_s)
        if orders is not None:
            table.replace(orders.generation, orders.adapters)
            self._mark = orders.mark


class BeginClient(Protocol):
    """What it takes to give a new set its first adapters."""

    async def adapter_orders(self) -> tuple[AdapterOrders, list[LoadFailure]]: ...
    async def begin_adapters(self, base: str, refs: tuple[AdapterRef, ...]) -> None: ...


async def begin_modules(client: BeginClient, config: AdaptersConfig, engine: EngineConfig) -> None:
    """Makes the configured adapters the set, if it does not stem from this configuration already.

    Raises AdapterError for one that cannot be served, UnavailableError without a directory.
    """
    orders, _ = await client.adapter_orders()
    if orders.base != config.base:
        refs = [await asyncio.to_thread(describe, engine, m.name, m.path) for m in config.modules]
        await client.begin_adapters(config.base, tuple(refs))


def describe(engine: EngineConfig, name: str, path: str) -> AdapterRef:
    """Reads and checks an adapter's folder against the model. Raises AdapterError."""
    spec = read_model_spec(engine.model_dir)
    return describe_adapter(name, path, spec, engine.max_lora_rank)


async def _tried(ask: Callable[[], Awaitable[T | None]], poll_s: float) -> tuple[bool, T | None]:
    """Whether there was an answer, and what; without one it waits a moment."""
    try:
        return True, await ask()
    except UnavailableError as error:
        log.info("the adapter board: %s; trying again", error)
        await asyncio.sleep(poll_s)
        return False, None


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
