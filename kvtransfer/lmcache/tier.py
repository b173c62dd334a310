"""A `Tier` in LMCache: what any worker stored, all workers of the same model and layout find.

An object is a block and 16 bytes that only this block under this hash for this fingerprint has. So
whatever LMCache mixes up (a request id used twice for other tokens gives one prompt's KV for
another's, a writer that outlived its reservation writes into somebody else's object) is a miss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from baton.kvtransfer.lmcache.client import TIMEOUT_S, Kind, LMCacheClient
from baton.kvtransfer.tiers.tier import TierSpace, TierStatistics
from baton.protos.errors import TransferError
from baton.protos.types import KvEvents

SEAL_BYTES: Final = 16
# LMCache makes room for all keys of a store or for none, so they go in small parts.
_STORE_BYTES: Final = 16 << 20


class LMCacheTier:
    """See `Tier`. Blocks are bounded by the server's memory and storage, not by this worker."""

    name = "lmcache"

    def __init__(self, address: str, space: TierSpace, *, timeout_s: float = TIMEOUT_S) -> None:
        """The server may come later. ConfigError if LMCache is not installed."""
        self._memory = space.memory
        self._fingerprint = bytes.fromhex(space.fingerprint)
        self._block_bytes = space.layout.block_bytes
        self._object_bytes = self._block_bytes + SEAL_BYTES
        self._kind = Kind(f"baton-{space.fingerprint}", self._object_bytes)
        self._client = LMCacheClient(address, timeout_s=timeout_s)
        # Not within the first lookup, by whose time the tier would be judged.
        with contextlib.suppress(TransferError):
            self._client.instance()
        self._num_stored = 0
        self._num_damaged = 0

    def lookup(self, hashes: Sequence[bytes]) -> int:
        return self._client.lookup(self._kind, hashes) if hashes else 0

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        sound: list[bool] = []

        def read(index: int, found: torch.Tensor) -> None:
            block = self._memory[slots[index]]
            block.copy_(found[: self._block_bytes])
            # Of the copy, which nobody else can write to.
            seal = found[self._block_bytes :].numpy().tobytes()
            sound.append(seal == self._seal(hashes[index], block))

        if hashes:
            self._client.load(self._kind, hashes, read)
        self._num_damaged += sound.count(False)
        return next((i for i, is_sound in enumerate(sound) if not is_sound), len(sound))

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        step = max(1, _STORE_BYTES // self._object_bytes)
        count = 0
        for first in range(0, len(hashes), step):
            count += self._store(hashes[first : first + step], slots[first : first + step])
        self._num_stored += count
        return count

    def _store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        def write(index: int, place: torch.Tensor) -> None:
            block = self._memory[slots[index]]
            place[: self._block_bytes].copy_(block)
            seal = np.frombuffer(self._seal(hashes[index], block), dtype=np.uint8)
            place[self._block_bytes :].numpy()[:] = seal

        return self._client.store(self._kind, hashes, write)

    def drain_changes(self) -> KvEvents:
        return KvEvents()

    def statistics(self) -> TierStatistics:
        """What this worker stored: how much of it is still there, the server knows."""
        return TierStatistics(
            num_blocks=self._num_stored,
            num_bytes=self._num_stored * self._object_bytes,
            max_bytes=0,
            num_damaged=self._num_damaged,
        )

    def close(self) -> None:
        self._client.close()

    def _seal(self, block_hash: bytes, block: torch.Tensor) -> bytes:
        from blake3 import blake3

        # Its stub and numpy's disagree on what a buffer is.
        seal: Any = blake3(self._fingerprint + block_hash)
        seal.update(block.numpy())
        found: bytes = seal.digest(length=SEAL_BYTES)
        return found
