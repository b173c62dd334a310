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
