"""The part of Baton that runs inside an LMCache server, as one of its server modules.

`lmcache server --server-module '{"module_path": "baton.kvtransfer.lmcache.module"}'` loads it; so
does `process`. It answers `messages` out of the server's own storage: the same memory, eviction and
slower storage as for LMCache's other clients.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import torch
from lmcache.v1.distributed.api import (
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchLockMode,
    PrefetchTaskSpec,
)
from lmcache.v1.multiprocess.ext_server_module import server_module_handler

from baton.kvtransfer.lmcache.messages import (
    METHOD,
    PROTOCOL,
    Count,
    EndLoad,
    EndStore,
    Gone,
    Hello,
    Load,
    Lookup,
    Places,
    Reply,
    Store,
    Welcome,
    decode_request,
    encode,
    split_keys,
)

# Whoever has begun something and says nothing for so long is gone.
TICKET_S: Final = 60.0
_MAX_TICKETS: Final = 65536
# Storage that did not answer in time is asked again after this.
STORAGE_PAUSE_S: Final = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ticket:
    keys: list[ObjectKey]
    writes: bool
    began_s: float


class BatonModule:
    """See the module's docstring. Called from several threads."""

    def __init__(self, server_context: Any, instance: str) -> None:
        self._context = server_context
        self._instance = instance
        self._storage = server_context.storage_manager
        self._server = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._tickets: dict[str, _Ticket] = {}
        self._storage_pause_ends_s = 0.0

    @property
    def context(self) -> Any:
        """LMCache asks every module for it."""
        return self._context

    def report_status(self) -> dict[str, Any]:
        return {"baton": {"server": self._server, "open_tickets": len(self._tickets)}}

    def close(self) -> None:
        """What was begun ends with the server."""

    @server_module_handler(METHOD)  # type: ignore[untyped-decorator]
    def handle(self, payload: bytes) -> bytes:
        """One request. What it raises, the caller is told."""
        request = decode_request(payload)
        if not isinstance(request, Hello) and request.server != self._server:
            return encode(Gone())
        self._forget_old()
        return encode(self._answer(request))

    def _answer(self, request: Any) -> Reply:
        match request:
            case Lookup():
                return self._lookup(request)
            case Load():
                return self._load(request)
            case EndLoad():
                return self._end_load(request)
            case Store():
                return self._store(request)
            case EndStore():
                return self._end_store(request)
            case _:
                return self._welcome()

    def _welcome(self) -> Welcome:
        pool = self._context.shm_pool_info
        return Welcome(
            server=self._server,
            instance=self._instance,
            protocol=PROTOCOL,
            version=version("lmcache"),
            shm_name=pool["shm_name"],
            pool_bytes=pool["pool_size"],
        )

    def _lookup(self, request: Lookup) -> Count:
        keys = _object_keys(request.space, request.keys)
        return Count(self._prefetch(keys, request.num_bytes, request.wait_s, lock=False))

    def _load(self, request: Load) -> Places:
        keys = _object_keys(request.space, request.keys)
        count = self._prefetch(keys, request.num_bytes, request.wait_s, lock=True)
        locked = keys[:count]
        found, objects = self._storage.unsafe_read(locked)
        if found != locked:
            # Their locks expired under us; what is still locked is let go by and by.
            raise TimeoutError("objects were evicted while they were looked up")
        offsets = [memory.shm_offset for memory in objects]
        return Places(self._open(locked, writes=False), list(range(count)), offsets)

    def _end_load(self, request: EndLoad) -> Count:
        ticket = self._take(request.ticket, writes=False)
        if ticket is None:
            return Count(0)
        self._storage.finish_read_prefetched(ticket.keys)
        if request.delete:
            self._storage.delete_l1_keys(ticket.keys)
        return Count(len(ticket.keys))

    def _store(self, request: Store) -> Places:
        keys = _object_keys(request.space, request.keys)
        held = self._present(keys, request.num_bytes)
        missing = [key for key in keys if key not in held]
        reserved = self._storage.reserve_write(missing, _layout(request.num_bytes))
        indices = [i for i, key in enumerate(keys) if key in reserved]
        offsets = [reserved[keys[i]].shm_offset for i in indices]
        ticket = self._open([keys[i] for i in indices], writes=True)
        return Places(ticket, indices, offsets, len(keys) - len(missing))

    def _end_store(self, request: EndStore) -> Count:
        ticket = self._take(request.ticket, writes=True)
        if ticket is None:
            return Count(0)
        self._storage.finish_write(ticket.keys)
        return Count(len(ticket.keys))

    def _prefetch(self, keys: list[ObjectKey], num_bytes: int, wait_s: float, *, lock: bool) -> int:
        """How many leading keys are in memory now; with `lock` they stay there.

        Memory is asked by itself first: LMCache lets even what is there wait for storage that does
        not answer.
        """
        mode = PrefetchLockMode.LOCK if lock else PrefetchLockMode.NO_LOCK
        count = _num_leading(self._hits(keys, num_bytes, "prefix", mode))
        if count == len(keys) or not self._storage_works():
            return count
        handle = self._submit(keys[count:], num_bytes, "prefix", mode, skip_l2=False)
        if not self._storage.wait_prefetch_status(handle, wait_s):
            # What it may lock yet is let go by and by.
            logger.warning("storage does not answer: left alone for %g s", STORAGE_PAUSE_S)
            self._storage_pause_ends_s = time.monotonic() + STORAGE_PAUSE_S
            return count
        return count + _num_leading(self._result(handle, len(keys) - count))

    def _storage_works(self) -> bool:
        has_any = bool(self._storage.l2_adapters())
        return has_any and time.monotonic() >= self._storage_pause_ends_s

    def _present(self, keys: list[ObjectKey], num_bytes: int) -> set[ObjectKey]:
        """Those that are in memory; storage is not asked."""
        hits = self._hits(keys, num_bytes, "full", PrefetchLockMode.NO_LOCK)
        return {key for key, hit in zip(keys, hits, strict=True) if hit}

    def _hits(
        self, keys: list[ObjectKey], num_bytes: int, policy: str, mode: PrefetchLockMode
    ) -> list[bool]:
        """Which are in memory, without waiting."""
        if not keys:
            return []
        handle = self._submit(keys, num_bytes, policy, mode, skip_l2=True)
        return self._result(handle, len(keys))

    def _submit(
        self,
        keys: list[ObjectKey],
        num_bytes: int,
        policy: str,
        mode: PrefetchLockMode,
        *,
        skip_l2: bool,
    ) -> Any:
        row = GroupedObjectKeys(keys=keys, object_group_id=0, layout_desc=_layout(num_bytes))
        spec = PrefetchTaskSpec(key_groups=[row], fetching_policy=policy, lock_mode=mode)
        return self._storage.submit_prefetch_task(spec, skip_l2=skip_l2)

    def _result(self, handle: Any, count: int) -> list[bool]:
        cells = self._storage.query_prefetch_status(handle).hit_cells[0]
        return [cells.test(i) for i in range(count)]

    def _open(self, keys: list[ObjectKey], *, writes: bool) -> str:
        ticket = uuid.uuid4().hex
        with self._lock:
            if len(self._tickets) >= _MAX_TICKETS:
                raise RuntimeError(f"{_MAX_TICKETS} loads and stores are open")
            self._tickets[ticket] = _Ticket(keys, writes, time.monotonic())
        return ticket

    def _take(self, ticket: str, *, writes: bool) -> _Ticket | None:
        with self._lock:
            found = self._tickets.pop(ticket, None)
        return found if found is not None and found.writes is writes else None

    def _forget_old(self) -> None:
        """Tickets are in order of age. A reader's locks are given back; what a writer left half
        written stays invisible until LMCache takes its memory back.
        """
        limit_s = time.monotonic() - TICKET_S
        old: list[_Ticket] = []
        with self._lock:
            while self._tickets:
                name = next(iter(self._tickets))
                if self._tickets[name].began_s > limit_s:
                    break
                old.append(self._tickets.pop(name))
        for ticket in old:
            if not ticket.writes:
                self._storage.finish_read_prefetched(ticket.keys)


def build_server_modules(build: Any) -> BatonModule:
    """LMCache calls this."""
    return BatonModule(build.server_context, build.mp_config.instance_id)


def _num_leading(hits: list[bool]) -> int:
    return next((i for i, hit in enumerate(hits) if not hit), len(hits))


def _object_keys(space: str, keys: bytes) -> list[ObjectKey]:
    return [ObjectKey(chunk_hash=key, model_name=space, kv_rank=0) for key in split_keys(keys)]


def _layout(num_bytes: int) -> MemoryLayoutDesc:
    return MemoryLayoutDesc(shapes=[torch.Size([num_bytes])], dtypes=[torch.uint8])
