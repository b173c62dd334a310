"""The directory as a named Ray actor, and the client that finds it again whenever it was replaced.

docs/decisions/0001-directory.md says why it is a detached actor.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental import internal_kv

from baton.cluster.config import DirectoryConfig
from baton.cluster.directory import GatewayMember, Listing, MemberTable, StartFailure
from baton.cluster.scaling_board import (
    AppliedScaling,
    PoolScaling,
    ScalingBoard,
    ScalingInputs,
    ScalingStatus,
)
from baton.protos.errors import BatonError, UnavailableError
from baton.protos.types import Member, Role
from baton.router.scaling_signals import Demand, ScalingDecision

ACTOR_NAME = "baton-directory"
CALL_TIMEOUT_S = 5.0
SETTINGS_KEY = b"scaling"
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
        self._last_call_s = 0.0
        self._idle_watch: asyncio.Task[None] | None = None

    async def heartbeat(self, member: Member | GatewayMember) -> None:
        self._touch()
        self._table.heartbeat(member)

    async def leave(self, incarnation: str) -> None:
        self._touch()
        self._table.leave(incarnation)

    async def report_failure(self, failure: StartFailure) -> None:
        self._touch()
        self._table.report_failure(failure)

    async def listing(self) -> Listing:
        self._touch()
        return self._table.listing()

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

    async def _call(self, reference: Awaitable[T]) -> T:
        async def answer() -> T:
            return await reference

        try:
            return await asyncio.wait_for(answer(), CALL_TIMEOUT_S)
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
            raise UnavailableError(
                f"no answer from the directory in {CALL_TIMEOUT_S:g} s"
            ) from error
