"""The directory as a named Ray actor, and the client that finds it again whenever it was replaced.

docs/decisions/0001-directory.md says why it is a detached actor.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental import internal_kv

from baton.cluster.adapter_board import AdapterBoard
from baton.cluster.adapter_orders import (
    AdapterOrders,
    AdapterState,
    Change,
    GatewayReport,
    LoadFailure,
    Mark,
    WorkerReport,
)
from baton.cluster.config import DirectoryConfig
from baton.cluster.directory import GatewayMember, Listing, MemberTable, StartFailure
from baton.cluster.scaling_board import (
    AppliedScaling,
    PoolScaling,
    ScalingBoard,
    ScalingInputs,
    ScalingStatus,
)
from baton.protos.adapters import AdapterRef
from baton.protos.errors import BatonError, UnavailableError
from baton.protos.types import Member, Role
from baton.router.scaling_signals import Demand, ScalingDecision

ACTOR_NAME = "baton-directory"
CALL_TIMEOUT_S = 5.0
SETTINGS_KEY = b"scaling"
ADAPTERS_KEY = b"adapters"
# Calls that are held until there is something new; beyond it they are answered at once.
MAX_HELD = 512
# Nobody has renewed a lease or asked for this long: the application is gone, and so goes its
# directory.
IDLE_EXIT_S = 600.0
T = TypeVar("T")


class DirectoryActor:
    """One `MemberTable` behind Ray calls. Each call takes microseconds, and no request waits on
    one.
    """

    def __init__(self, application: str, config: DirectoryConfig) -> None:
        self._table = MemberTable(config.lease_s, config.max_members)
        self._board = ScalingBoard(config.lease_s)
        self._store = SettingsStore(application)
        self._board.applied = self._store.load()
        self._adapters = AdapterBoard(
            config.lease_s, state=self._store.load_adapters(), save=self._store.save_adapters
        )
        self._adapters_changed = asyncio.Event()
        self._num_adapter_events = 0
        self._num_held = 0
        self._last_call_s = 0.0
        self._idle_watch: asyncio.Task[None] | None = None

    async def heartbeat(self, member: Member | GatewayMember) -> None:
        self._touch()
        self._table.heartbeat(member)

    async def leave(self, incarnation: str) -> None:
        self._touch()
        self._table.leave(incarnation)
        self._adapters.leave(incarnation)

    async def report_failure(self, failure: StartFailure) -> None:
        self._touch()
        self._table.report_failure(failure)

    async def listing(self) -> Listing:
        self._touch()
        return dataclasses.replace(self._table.listing(), targets=self._board.targets())

    async def report_demand(self, gateway_id: str, demand: Demand) -> None:
        self._touch()
        self._board.report_demand(gateway_id, demand)

    async def report_decision(self, decision: ScalingDecision) -> None:
        self._board.report_decision(decision)

    async def scaling_inputs(self) -> ScalingInputs:
        return self._board.inputs()

    async def scaling_status(self) -> ScalingStatus:
        return self._board.status()

    async def apply_scaling(self, applied: AppliedScaling | None) -> None:
        """Replaces the deployed settings; None goes back to them."""
        self._touch()
        self._store.save(applied)
        self._board.applied = applied

    async def begin_adapters(self, base: str, refs: tuple[AdapterRef, ...]) -> None:
        """What a configuration's set of adapters begins with; "" and none forget everything."""
        self._adapters.begin(base, refs)
        self._wake_held()

    async def adapter_orders(self) -> tuple[AdapterOrders, list[LoadFailure]]:
        """The set, and what workers could not load of it."""
        return self._adapters.orders(), self._adapters.failures()

    async def propose_adapter(self, ref: AdapterRef, force: bool, timeout_s: float) -> int:
        number = self._adapters.propose(ref, force=force, timeout_s=timeout_s)
        self._wake_held()
        return number

    async def remove_adapter(self, name: str) -> int:
        number = self._adapters.remove(name)
        self._wake_held()
        return number

    async def adapter_change(self, number: int, hold_s: float) -> Change:
        """Answers when the change is done, or after `hold_s`."""
        if not self._adapters.change(number).done:
            await self._hold(hold_s, lambda: self._adapters.change(number).done)
        return self._adapters.change(number)

    async def work_adapters(self, report: WorkerReport, hold_s: float) -> AdapterOrders | None:
        self._touch()
        self._adapters.work(report)
        return await self._newer_orders(report.mark, hold_s)

    async def serve_adapters(self, report: GatewayReport, hold_s: float) -> AdapterOrders | None:
        self._touch()
        self._adapters.serve(report)
        return await self._newer_orders(report.mark, hold_s)

    async def _newer_orders(self, mark: Mark, hold_s: float) -> AdapterOrders | None:
        self._wake_held()
        if self._adapters.mark == mark:
            await self._hold(hold_s, lambda: self._adapters.mark != mark)
        return None if self._adapters.mark == mark else self._adapters.orders()

    async def _hold(self, hold_s: float, ready: Callable[[], bool]) -> None:
        """Waits until `ready`, which is looked at whenever something was decided."""
        if self._num_held >= MAX_HELD:
            return
        self._num_held += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    while not ready():
                        await self._adapters_changed.wait()
        finally:
            self._num_held -= 1

    def _wake_held(self) -> None:
        if self._adapters.num_events != self._num_adapter_events:
            self._num_adapter_events = self._adapters.num_events
            self._adapters_changed.set()
            self._adapters_changed = asyncio.Event()

    def _touch(self) -> None:
        loop = asyncio.get_running_loop()
        self._last_call_s = loop.time()
        if self._idle_watch is None:
            self._idle_watch = loop.create_task(self._exit_when_idle())

    async def _exit_when_idle(self) -> None:
        while asyncio.get_running_loop().time() - self._last_call_s < IDLE_EXIT_S:
            await asyncio.sleep(IDLE_EXIT_S / 10)
        ray.actor.exit_actor()


class SettingsStore:
    """Applied settings in Ray's own key-value store, so that they outlive the actor."""

    def __init__(self, application: str) -> None:
        self._namespace = namespace(application).encode()

    def load(self) -> AppliedScaling | None:
        found = internal_kv._internal_kv_get(SETTINGS_KEY, namespace=self._namespace)
        if not found:
            return None
        values = json.loads(found)
        pools = {Role(k): PoolScaling.from_json(v) for k, v in values["pools"].items()}
        return AppliedScaling(base=values["base"], pools=pools)

    def save(self, applied: AppliedScaling | None) -> None:
        if applied is None:
            internal_kv._internal_kv_del(SETTINGS_KEY, namespace=self._namespace)
            return
        pools = {role.value: pool.to_json() for role, pool in applied.pools.items()}
        text = json.dumps({"base": applied.base, "pools": pools}).encode()
        internal_kv._internal_kv_put(SETTINGS_KEY, text, overwrite=True, namespace=self._namespace)

    def load_adapters(self) -> AdapterState | None:
        found = internal_kv._internal_kv_get(ADAPTERS_KEY, namespace=self._namespace)
        return AdapterState.from_json(json.loads(found)) if found else None

    def save_adapters(self, state: AdapterState) -> None:
        text = json.dumps(state.to_json()).encode()
        internal_kv._internal_kv_put(ADAPTERS_KEY, text, overwrite=True, namespace=self._namespace)


def namespace(application: str) -> str:
    """The Ray namespace of an application's named actors."""
    return f"baton-{application}"


def open_directory(application: str, config: DirectoryConfig) -> Any:
    """The handle of the application's directory, which is created when there is none. Blocks
    briefly.
    """
    options = {
        "name": ACTOR_NAME,
        "namespace": namespace(application),
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    return ray.remote(DirectoryActor).options(**options).remote(application, config)


class RayDirectoryClient:
    """`DirectoryClient` over Ray. After any failure the handle is looked up, or the actor made,
    anew.
    """

    def __init__(self, application: str, config: DirectoryConfig) -> None:
        self._application = application
        self._config = config
        self._handle: Any = None
        # One look-up at a time: a thread that hangs in Ray is waited for, not joined by another.
        self._opening: asyncio.Future[Any] | None = None

    async def heartbeat(self, member: Member | GatewayMember) -> None:
        await self._call((await self._open()).heartbeat.remote(member))

    async def leave(self, incarnation: str) -> None:
        await self._call((await self._open()).leave.remote(incarnation))

    async def report_failure(self, failure: StartFailure) -> None:
        await self._call((await self._open()).report_failure.remote(failure))

    async def listing(self) -> Listing:
        return await self._call((await self._open()).listing.remote())

    async def report_demand(self, gateway_id: str, demand: Demand) -> None:
        await self._call((await self._open()).report_demand.remote(gateway_id, demand))

    async def report_decision(self, decision: ScalingDecision) -> None:
        await self._call((await self._open()).report_decision.remote(decision))

    async def scaling_inputs(self) -> ScalingInputs:
        return await self._call((await self._open()).scaling_inputs.remote())

    async def scaling_status(self) -> ScalingStatus:
        return await self._call((await self._open()).scaling_status.remote())

    async def apply_scaling(self, applied: AppliedScaling | None) -> None:
        await self._call((await self._open()).apply_scaling.remote(applied))

    async def begin_adapters(self, base: str, refs: tuple[AdapterRef, ...]) -> None:
        await self._call((await self._open()).begin_adapters.remote(base, refs))

    async def adapter_orders(self) -> tuple[AdapterOrders, list[LoadFailure]]:
        return await self._call((await self._open()).adapter_orders.remote())

    async def propose_adapter(self, ref: AdapterRef, *, force: bool, timeout_s: float) -> int:
        handle = await self._open()
        return await self._call(handle.propose_adapter.remote(ref, force, timeout_s))

    async def remove_adapter(self, name: str) -> int:
        return await self._call((await self._open()).remove_adapter.remote(name))

    async def adapter_change(self, number: int, hold_s: float) -> Change:
        return await self._call((await self._open()).adapter_change.remote(number, hold_s), hold_s)

    async def work_adapters(self, report: WorkerReport, hold_s: float) -> AdapterOrders | None:
        handle = await self._open()
        return await self._call(handle.work_adapters.remote(report, hold_s), hold_s)

    async def serve_adapters(self, report: GatewayReport, hold_s: float) -> AdapterOrders | None:
        handle = await self._open()
        return await self._call(handle.serve_adapters.remote(report, hold_s), hold_s)

    async def _open(self) -> Any:
        if self._handle is not None:
            return self._handle
        if self._opening is None:
            self._opening = asyncio.ensure_future(
                asyncio.to_thread(open_directory, self._application, self._config)
            )
        try:
            self._handle = await asyncio.wait_for(asyncio.shield(self._opening), CALL_TIMEOUT_S)
        except (RayError, ValueError) as error:
            self._opening = None
            raise UnavailableError(f"the directory cannot be opened: {error}") from error
        except TimeoutError as error:
            raise UnavailableError(f"no directory after {CALL_TIMEOUT_S:g} s") from error
        self._opening = None
        return self._handle

    async def _call(self, reference: Awaitable[T], hold_s: float = 0.0) -> T:
        """hold_s: how long the directory may keep its answer."""

        async def answer() -> T:
            return await reference

        limit_s = CALL_TIMEOUT_S + hold_s
        try:
            return await asyncio.wait_for(answer(), limit_s)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BatonError):
                raise cause from error
            self._handle = None
            raise UnavailableError(f"the directory failed: {cause}") from error
        except RayError as error:
            self._handle = None
            raise UnavailableError(f"the directory is away: {error}") from error
        except TimeoutError as error:
            self._handle = None
            raise UnavailableError(f"no answer from the directory in {limit_s:g} s") from error
