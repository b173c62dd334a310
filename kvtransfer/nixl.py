"""KV blocks between processes and machines, by NIXL writes (UCX): `NixlConnector`.

What the NIXL 1.5 wire was seen to do, and what follows from it here:

- NIXL's own progress thread burns half a core while nothing happens and halves the bandwidth of a
  small machine, so it stays off: the connector's thread makes the progress, on both sides.
- Between processes of one host the copy happens within the post (with the GIL released); through
  a socket or a GPU it goes on after it.
- A peer that died makes any call raise `nixlRemoteDisconnectError`, for ever. Its endpoint must be
  closed, and some progress made after that, or UCX aborts this process when the agent goes.
- An agent whose wire was lost can be forgotten and added again by the same name, and then
  works.
- `remove_remote_agent` ends writes that are under way, also to a peer that stands still.

Environment, read when the first connector of a process is made and never overwritten:
`NIXL_LOG_LEVEL` (ERROR unless set: INFO lines go to stdout otherwise) and, for pools on a GPU,
`UCX_CUDA_IPC_ENABLE_GET_ZCOPY` (on unless set: without it GPUs of one host that show no NVLink
fall back to 0.5 GB/s).
"""

from __future__ import annotations

import importlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch

from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.mapping import Grid
from baton.kvtransfer.pool import check_pool, prefault
from baton.kvtransfer.wire import ConnectorLimits, Route, RunIds, Transfer
from baton.kvtransfer.wire_connector import WireConnector
from baton.protos.errors import ConfigError, PeerLostError, TransferError

# Magic, memory kind of the pool, address of the scratch bytes; NIXL's own metadata follows.
_METADATA: Final = struct.Struct("<4s4sQ")
_METADATA_MAGIC: Final = b"BNX1"
_SCRATCH_BYTES: Final = 64
_CLOSE_PROGRESS_S: Final = 0.05
_PACKAGES: Final = ("nixl_cu13", "nixl_cu12")

logger = logging.getLogger(__name__)


class NixlConnector(WireConnector):
    """Moves blocks of `pool` by NIXL. See `Connector` for the contract.

    `pool` is `[num_blocks, *layout.block_shape]`, contiguous, on CPU or CUDA; it is registered as
    long as the connector is open. Raises ConfigError if it is something else, or if NIXL is not
    installed or does not start.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        layout: KVLayout,
        key: PeerKey,
        *,
        on_notice: Callable[[PeerKey, Notice], None],
        limits: ConnectorLimits | None = None,
    ) -> None:
        super().__init__(NixlWire(pool, layout, key), on_notice=on_notice, limits=limits)


class NixlWire:
    """A NIXL agent with one registered pool. See `Wire`."""

    def __init__(self, pool: torch.Tensor, layout: KVLayout, key: PeerKey) -> None:
        num_blocks = check_pool(pool, layout)
        self._api, self._errors = _load_nixl(on_gpu=pool.is_cuda)
        self._pool = pool
        self._memory = "VRAM" if pool.is_cuda else "DRAM"
        self._scratch = np.zeros(_SCRATCH_BYTES, dtype=np.uint8)
        # Descriptor lists of each open peer, made once: runs here, runs there.
        self._lists: dict[PeerKey, tuple[Any, Any]] = {}
        self._staging: torch.Tensor | None = None
        if not pool.is_cuda:
            prefault(pool)
        try:
            config = self._api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent = self._api.nixl_agent(key.agent, config)
            scratch = [(self._scratch.ctypes.data, _SCRATCH_BYTES, 0, "")]
            self._registered = [
                self._agent.register_memory(pool),
                self._agent.register_memory(scratch, "DRAM"),
            ]
            head = _METADATA.pack(_METADATA_MAGIC, self._memory.encode(), self._scratch.ctypes.data)
            metadata = head + self._agent.get_agent_metadata()
            device_id = max(pool.get_device(), 0)
            self._info = PeerInfo(key, metadata, layout, pool.data_ptr(), num_blocks, device_id)
        except self._errors as error:
            raise ConfigError(
                f"NIXL cannot register the KV pool of {key}: {error}", param="connector"
            ) from error

    @property
    def info(self) -> PeerInfo:
        return self._info

    @property
    def pool(self) -> torch.Tensor:
        return self._pool

    def enter_thread(self) -> None:
        if self._pool.is_cuda:
            # UCX moves GPU memory in the context that is current on the posting thread.
            torch.cuda.set_device(self._pool.device)

    def open(self, peer: PeerInfo, route: Route) -> Transfer:
        """Writes into the peer's scratch bytes: when they are there, the wire is up."""
        memory, scratch_address, metadata = _unpack_metadata(peer)
        name = peer.key.agent
        with self._mapped(f"connecting to {peer.key}"):
            self._register(route.source)
            found = self._agent.add_remote_agent(metadata)
            found = found.decode() if isinstance(found, bytes) else str(found)
            if found != name:
                self._agent.remove_remote_agent(found)
                raise TransferError(f"the NIXL agent of {name} says that it is {found}")
            try:
                self._prepare_lists(peer, memory, route)
                handle = self._agent.initialize_xfer(
                    "WRITE",
                    self._agent.get_xfer_descs(
                        [(self._scratch.ctypes.data, _SCRATCH_BYTES, 0)], "DRAM"
                    ),
                    self._agent.get_xfer_descs([(scratch_address, _SCRATCH_BYTES, 0)], "DRAM"),
                    name,
                )
                return self._post(handle, peer.key)
            except Exception:
                self.drop(peer.key)
                raise

    def write(
        self, key: PeerKey, local_runs: RunIds, remote_runs: RunIds, notice: bytes
    ) -> Transfer:
        here, there = self._lists[key]
        with self._mapped(f"writing to {key}"):
            handle = self._agent.make_prepped_xfer(
                "WRITE", here, local_runs, there, remote_runs, notice
            )
            return self._post(handle, key)

    def drop(self, key: PeerKey) -> None:
        try:
            for prepared in self._lists.pop(key, ()):
                self._agent.release_dlist_handle(prepared)
            self._agent.remove_remote_agent(key.agent)
        except self._errors as error:
            # It was on its way out; nothing depends on it any more.
            logger.warning("NIXL could not forget %s: %s", key, error)

    def received(self) -> list[tuple[str, bytes]]:
        with self._mapped("reading notices"):
            notices: dict[str, list[bytes]] = self._agent.get_new_notifs()
        return [(sender, data) for sender, batch in notices.items() for data in batch]

    def close(self) -> None:
        end_s = time.monotonic() + _CLOSE_PROGRESS_S
        try:
            while time.monotonic() < end_s:
                self._agent.get_new_notifs()
                time.sleep(0.001)
            for registered in self._registered:
                self._agent.deregister_memory(registered)
        except self._errors as error:
            logger.warning("NIXL agent %s did not close cleanly: %s", self._info.key, error)
        del self._agent

    def _register(self, source: torch.Tensor) -> None:
        """A staging buffer is registered with the first route that reads from it."""
        if source is not self._pool and self._staging is None:
            self._registered.append(self._agent.register_memory(source))
            self._staging = source

    def _prepare_lists(self, peer: PeerInfo, memory: str, route: Route) -> None:
        """Descriptor lists over all runs of a route; writes pick from them by index."""
        device_id = self._info.device_id
        here = self._prepare(
            "NIXL_INIT_AGENT", route.source.data_ptr(), device_id, route.local, self._memory
        )
        try:
            there = self._prepare(
                peer.key.agent, peer.pool_address, peer.device_id, (route.remote,), memory
            )
        except self._errors:
            self._agent.release_dlist_handle(here)
            raise
        self._lists[peer.key] = (here, there)

    def _prepare(
        self, agent: str, address: int, device_id: int, grids: Sequence[Grid], memory: str
    ) -> Any:
        strided = [
            (address + grid.offset, grid.run_bytes, device_id, grid.stride, grid.count)
            for grid in grids
        ]
        return self._agent.prep_xfer_dlist(agent, np.array(strided, dtype=np.uint64), memory)

    def _post(self, handle: Any, key: PeerKey) -> Transfer:
        transfer = _NixlTransfer(self, handle, key)
        try:
            with self._mapped(f"writing to {key}"):
                transfer.state = self._agent.transfer(handle)
        except TransferError:
            transfer.release()
            raise
        return transfer

    def check(self, handle: Any, key: PeerKey) -> str:
        """DONE, PROC or ERR; PeerLostError, TransferError."""
        with self._mapped(f"writing to {key}"):
            state: str = self._agent.check_xfer_state(handle)
        return state

    def release(self, handle: Any) -> None:
        """Frees a transfer, cutting it off if it runs."""
        try:
            self._agent.release_xfer_handle(handle)
        except self._errors as error:
            # NIXL keeps it and frees it with the agent.
            logger.warning("NIXL could not release a transfer: %s", error)

    @contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        """The one place where NIXL's exceptions become ours."""
        try:
            yield
        except self._errors as error:
            if type(error).__name__ == "nixlRemoteDisconnectError":
                raise PeerLostError(f"{what}: the wire to it is gone ({error})") from error
            raise TransferError(f"{what}: {type(error).__name__} {error}") from error


class _NixlTransfer:
    """See `Transfer`."""

    def __init__(self, wire: NixlWire, handle: Any, key: PeerKey) -> None:
        self.state = "PROC"
        self._wire = wire
        self._handle = handle
        self._key = key

    def poll(self) -> bool:
        if self.state == "PROC":
            self.state = self._wire.check(self._handle, self._key)
        if self.state == "ERR":
            raise TransferError(f"writing to {self._key}: NIXL reports an error")
        return self.state == "DONE"

    def release(self) -> None:
        self._wire.release(self._handle)


def _unpack_metadata(peer: PeerInfo) -> tuple[str, int, bytes]:
    """The peer's memory kind, scratch address and NIXL metadata; TransferError."""
    data = peer.agent_metadata
    if len(data) > _METADATA.size:
        magic, memory, scratch_address = _METADATA.unpack_from(data)
        if magic == _METADATA_MAGIC and memory in (b"DRAM", b"VRAM"):
            return memory.decode(), scratch_address, data[_METADATA.size :]
    raise TransferError(f"the metadata of {peer.key} is not that of a NIXL connector")


def _load_nixl(*, on_gpu: bool) -> tuple[ModuleType, tuple[type[Exception], ...]]:
    """The NIXL package that is installed, and the exceptions that it raises."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    if on_gpu:
        os.environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "on")
    raises = logging.raiseExceptions
    for package in _PACKAGES:
        try:
            api = importlib.import_module(f"{package}._api")
            bindings = importlib.import_module(f"{package}._bindings")
        except ModuleNotFoundError:
            continue
        finally:
            # Importing NIXL turns the whole process's logging errors off.
            logging.raiseExceptions = raises
        errors = tuple(
            value
            for name, value in vars(bindings).items()
            if name.startswith("nixl") and isinstance(value, type) and issubclass(value, Exception)
        )
        return api, errors
    raise ConfigError(
        "connector nixl needs the NIXL package: pip install 'baton-serve[worker]' (Linux)",
        param="connector",
    )
