"""Adapters (LoRA) as processes tell each other of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """An adapter that can be loaded: what clients call it, and which content that is.

    adapter_id: hex digest of the folder's content. Requests and KV go by it, never by the name, so
        that a name may get other content while requests for the old one still run.
    path: of the folder, on every machine that loads it. rank: the largest of its modules'.
    """

    name: str
    adapter_id: str
    path: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLoad:
    """A worker's adapters: those on its device by id, with the rows of the batch that use each now.

    num_loaded: in CPU memory. Since the worker began: num_loads and load_s, folders read into CPU
    memory; num_copies and copy_s, copies to the device; num_evictions, those that took another's
    place; num_hits, requests that found theirs on the device.
    """

    resident: tuple[str, ...] = ()
    num_rows: tuple[int, ...] = ()
    num_loaded: int = 0
    num_loads: int = 0
    load_s: float = 0.0
    num_copies: int = 0
    copy_s: float = 0.0
    num_evictions: int = 0
    num_hits: int = 0
