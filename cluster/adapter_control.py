"""Adapters as one gateway's operators and requests see them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from baton.cluster.adapter_config import check_adapter_name, check_shadows
from baton.cluster.adapter_followers import AdapterClient, GatewayAdapters, describe
from baton.cluster.adapter_orders import AdapterOrders, Change, LoadFailure
from baton.cluster.config import BatonConfig
from baton.gateway.adapters import AdapterTable
from baton.protos.adapters import AdapterRef
from baton.protos.errors import (
    DeadlineError,
    InvalidRequestError,
    PermissionError_,
    error_from_code,
)

# An answer of the board is waited for this long at a time.
_HOLD_S = 2.0
# Beyond the board's own limit, for gateways that have not heard yet.
_TELL_S = 30.0


class BoardClient(AdapterClient, Protocol):
    """What changing the set takes, besides following it."""

    async def adapter_orders(self) -> tuple[AdapterOrders, list[LoadFailure]]: ...
    async def propose_adapter(self, ref: AdapterRef, *, force: bool, timeout_s: float) -> int: ...
    async def remove_adapter(self, name: str) -> int: ...
    async def adapter_change(self, number: int, hold_s: float) -> Change: ...


class ClusterAdapters:
    """`gateway.adapters_api.AdapterControl` over the board. Belongs to the gateway's event loop."""

    def __init__(self, config: BatonConfig, client: BoardClient) -> None:
        self.table = AdapterTable()
        self._config = config
        self._client = client
        self._follower = GatewayAdapters(
            client,
            self.table,
            incarnation=uuid.uuid4().hex,
            poll_s=config.directory.heartbeat_s,
        )

    async def start(self) -> None:
        """Begins to follow the board."""
        await self._follower.start()

    async def close(self) -> None:
        await self._follower.close()

    async def load(self, name: str, path: str, *, force: bool) -> dict[str, Any]:
        """See `AdapterControl`. InvalidRequestError names the field, the file or the tensor."""
        began_s = time.monotonic()
        limit_s = self._config.adapters.load_timeout_s
        check_adapter_name(name)
        check_shadows(name, self._config.gateway.model_names)
        ref = await asyncio.to_thread(self._read, name, path)
        number = await self._client.propose_adapter(ref, force=force, timeout_s=limit_s)
        await self._done(number, limit_s + _TELL_S)
        seconds = round(time.monotonic() - began_s, 3)
        return {"status": "loaded", **dataclasses.asdict(ref), "seconds": seconds}

    async def unload(self, name: str) -> dict[str, Any]:
        """See `AdapterControl`."""
        number = await self._client.remove_adapter(name)
        change = await self._done(number, _TELL_S)
        return {"status": "unloaded", **dataclasses.asdict(change.ref)}

    async def status(self) -> dict[str, Any]:
        """See `AdapterControl`."""
        orders, failures = await self._client.adapter_orders()
        named = {ref.adapter_id for ref in orders.adapters}
        others = [ref for ref in orders.wanted if ref.adapter_id not in named]
        return {
            "generation": orders.generation,
            "adapters": [dataclasses.asdict(ref) for ref in orders.adapters],
            "loading_or_draining": [dataclasses.asdict(ref) for ref in others],
            "failures": [dataclasses.asdict(failure) for failure in failures],
        }

    async def _done(self, number: int, limit_s: float) -> Change:
        """Raises what refused the change, DeadlineError where a gateway does not hear of it."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            change = await self._client.adapter_change(number, _HOLD_S)
            failure = change.failure
            if failure is not None:
                where = f"{failure.worker_id}: " if failure.worker_id else ""
                message = f"{where}{failure.message}"
                raise error_from_code(failure.code, message, param=failure.param)
            if change.done:
                return change
        raise DeadlineError(f"not every gateway knows of the change after {limit_s:g} s")

    def _read(self, name: str, path: str) -> AdapterRef:
        check_allowed(path, self._config.adapters.roots)
        return describe(self._config.decode.engine, name, path)


def check_allowed(path: str, roots: Sequence[str]) -> None:
    """Raises PermissionError_ for a folder, or a file in it, that is not below a root once links
    are followed. Says nothing of what there is outside.
    """
    if not roots:
        raise PermissionError_(
            "adapters cannot be loaded while serving: start with --lora-roots FOLDER",
            param="lora_path",
        )
    folder = Path(path)
    if not folder.is_absolute():
        raise InvalidRequestError(
            f"lora_path is {path[:200]!r}, but must be an absolute path", param="lora_path"
        )
    try:
        allowed = [Path(root).resolve() for root in roots]
        places = [folder.resolve()]
        if any(places[0].is_relative_to(root) for root in allowed) and places[0].is_dir():
            places += [entry.resolve() for entry in places[0].iterdir()]
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequestError(
            f"lora_path {path[:200]!r} cannot be followed: {error}", param="lora_path"
        ) from error
    if not all(any(place.is_relative_to(root) for root in allowed) for place in places):
        raise PermissionError_(
            f"lora_path {path[:200]!r} leads to outside of the folders that adapters may be loaded "
            "from (--lora-roots)",
            param="lora_path",
        )
