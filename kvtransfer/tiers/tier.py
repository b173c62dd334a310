"""The seam between an engine and a place that keeps KV blocks beyond its memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from baton.kvtransfer.layout import KVLayout
from baton.protos.types import KvEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpace:
    """The host memory that tiers fill and read, and what its blocks are.

    memory: uint8 [num_slots, layout.block_bytes], contiguous, page-locked where there is a GPU. A
        slot holds one block as it lies in the pool.
    """

    memory: torch.Tensor
    layout: KVLayout
    model_digest: str

    @property
    def fingerprint(self) -> str:
        """Blocks of spaces with equal fingerprints are interchangeable: same weights, same layout.

        Everything else that KV depends on (tokens, adapter, tenant) is in the blocks' hashes.
        """
        described = f"baton-kv-1\n{self.model_digest}\n{self.layout.to_json()}"
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatistics:
    """What a tier holds now, and blocks that it found damaged since it was opened.

    max_bytes is 0 where the limit is not this tier's own.
    """

    num_blocks: int
    num_bytes: int
    max_bytes: int
    num_damaged: int = 0


class Tier(Protocol):
    """Keeps blocks by their hash (`protos.hashing`), which stands for all tokens up to its end.

    Every method but `statistics` is called from one thread, the tier's own, and may block; it must
    end within a bounded time all the same. One that raises a BatonError (TransferError, as a rule)
    counts as a miss, and the tier is left alone for a while.

    Slots named in a call are the tier's until it returns and nobody else's: it writes those of
    `load` and only reads those of `store`. A block that is read back is either exactly what was
    stored under its hash for the same fingerprint, or a miss.
    """

    @property
    def name(self) -> str:
        """For metrics and messages, such as "disk"."""
        ...

    def lookup(self, hashes: Sequence[bytes]) -> int:
        """How many of the chain's leading blocks are here, as far as is known without reading."""
        ...

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        """Reads block `hashes[i]` into slot `slots[i]`; how many leading ones are there now.

        Slots beyond that number may hold anything.
        """
        ...

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        """Keeps the blocks in these slots, evicting others; how many of them are here now.

        The hashes are keys of their own: not always neighbours, nor in the order of a chain.
        """
        ...

    def drain_changes(self) -> KvEvents:
        """What came and went since the last call, for routers: at first what an earlier process
        left. Empty for a shared tier, whose content is no worker's own."""
        ...

    def statistics(self) -> TierStatistics:
        """From any thread."""
        ...

    def close(self) -> None:
        """The last call. What was stored stays for the next process where the tier is durable."""
        ...
