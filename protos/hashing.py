"""Block hashes: a chain over token blocks, so that equal hashes mean equal prefixes.

A hash names its block *and everything before it* (the chained scheme that vLLM's prefix cache
introduced). The salt carries what else the KV depends on: adapter, media, tenant.
"""

from __future__ import annotations

import array
import hashlib
import struct
from collections.abc import Sequence

# 128 bits: the engine trusts equal hashes to mean equal KV, so collisions must not be findable.
HASH_BYTES = 16


def hash_salt(*parts: str) -> bytes:
    """One salt from the parts that KV depends on beside tokens; no parts gives the empty salt."""
    if not any(parts):
        return b""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return digest.digest()


def adapter_salt(cache_salt: bytes, adapter_id: str) -> bytes:
    """A request's whole salt: its own, and the adapter that its KV goes through ("": none)."""
    if not adapter_id:
        return cache_salt
    return hash_salt(cache_salt.hex(), adapter_id)


def block_hashes(
    token_ids: Sequence[int], block_size: int, *, salt: bytes = b"", parent: bytes | None = None
) -> list[bytes]:
    """Hashes of the full blocks of `token_ids`; a partial last block has none.

    `parent` continues a chain: pass the hash of the block before `token_ids[0]`.
    """
    raw = array.array("i", token_ids).tobytes()
    width = 4 * block_size
    previous = salt if parent is None else parent
    hashes: list[bytes] = []
    for start in range(0, len(token_ids) // block_size * width, width):
        previous = hashlib.blake2b(
            previous + raw[start : start + width], digest_size=HASH_BYTES
        ).digest()
        hashes.append(previous)
    return hashes


def short_hash(block_hash: bytes) -> int:
    """The first 8 bytes, for indexes and digests that may be wrong once in 2^64."""
    return int.from_bytes(block_hash[:8], "little")


def short_hashes(hashes: Sequence[bytes]) -> tuple[int, ...]:
    """`short_hash` of each, in one go. Raises ValueError for hashes of another size."""
    raw = b"".join(hashes)
    if len(raw) != HASH_BYTES * len(hashes):
        raise ValueError(f"block hashes must be {HASH_BYTES} bytes each")
    return struct.unpack(f"<{2 * len(hashes)}Q", raw)[::2]
