"""Blocks as files of a local folder: bounded, checked when read, and there after a restart."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from baton.kvtransfer.tiers.disk_folder import claim_folder
from baton.kvtransfer.tiers.tier import TierSpace, TierStatistics
from baton.protos.errors import ConfigError, TransferError
from baton.protos.hashing import HASH_BYTES
from baton.protos.types import KvEvents

_log = logging.getLogger(__name__)

# A file is the first 16 bytes of SHA-256 over hash and block, then the block.
_SUM_BYTES: Final = 16
_SECTOR: Final = 4096
_TEMPORARY: Final = ".tmp"


class DiskTier:
    """One folder that is this process's alone, a file for each block, the least recently used out
    first. See `Tier` for the methods.

    A file appears under its name complete (written aside and renamed), and whatever is not exactly
    what was stored is a miss and goes: truncation shows in its length, the rest in its sum. Nothing
    is forced to the disk, so a power cut may cost blocks, never make them wrong.
    """

    name = "disk"

    def __init__(self, root: str, max_bytes: int, space: TierSpace) -> None:
        """Takes a folder under `root`, with what an earlier process left for the same fingerprint.

        Raises ConfigError where the folder cannot be used, or not even one block fits.
        """
        self._memory = space.memory.numpy()
        self._block_bytes = space.layout.block_bytes
        self._file_bytes = _SUM_BYTES + self._block_bytes
        self._disk_bytes = -(-self._file_bytes // _SECTOR) * _SECTOR
        self._max_blocks = max_bytes // self._disk_bytes
        self._max_bytes = max_bytes
        if not self._max_blocks:
            raise ConfigError(
                f"disk_gib is {max_bytes / (1 << 30):g}, but a block of KV takes"
                f" {self._disk_bytes} bytes on disk",
                param="disk_gib",
            )
        self._folder, self._lock = claim_folder(Path(root), space.fingerprint)
        self._index: OrderedDict[bytes, None] = OrderedDict()
        self._stored: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        self._num_damaged = 0
        try:
            self._scan()
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(
                f"disk_path is {root!r}, but {self._folder} cannot be read: {error}",
                param="disk_path",
            ) from error

    def lookup(self, hashes: Sequence[bytes]) -> int:
        for count, block_hash in enumerate(hashes):
            if block_hash not in self._index:
                return count
        return len(hashes)

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        for count, (block_hash, slot) in enumerate(zip(hashes, slots, strict=True)):
            if block_hash not in self._index:
                return count
            if not self._read(block_hash, slot):
                self._drop_damaged(block_hash)
                return count
            self._index.move_to_end(block_hash)
        return len(hashes)

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        """As far as the disk has room: TransferError when it is full before `max_bytes` are."""
        for block_hash, slot in zip(hashes, slots, strict=True):
            if block_hash in self._index:
                self._index.move_to_end(block_hash)
                continue
            try:
                while len(self._index) >= self._max_blocks:
                    self._remove(next(iter(self._index)))
                self._write(block_hash, slot)
            except OSError as error:
                raise TransferError(f"a KV block cannot be written to disk: {error}") from error
            self._add(block_hash)
        return sum(block_hash in self._index for block_hash in hashes)

    def drain_changes(self) -> KvEvents:
        changes = KvEvents(stored=tuple(self._stored), removed=tuple(self._removed))
        self._stored.clear()
        self._removed.clear()
        return changes

    def statistics(self) -> TierStatistics:
        num_blocks = len(self._index)
        return TierStatistics(
            num_blocks=num_blocks,
            num_bytes=num_blocks * self._disk_bytes,
            max_bytes=self._max_bytes,
            num_damaged=self._num_damaged,
        )

    def close(self) -> None:
        """Gives the folder up: the next process may take it, with its blocks."""
        os.close(self._lock)

    def _path(self, block_hash: bytes) -> Path:
        name = block_hash.hex()
        return self._folder / name[:2] / name

    def _scan(self) -> None:
        """Takes over what is there, the most recently used last, as far as it fits."""
        found: list[tuple[int, bytes]] = []
        for part in self._folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(part):
                stat = entry.stat()
                block_hash = _hash_of(entry.name)
                if block_hash is None or stat.st_size != self._file_bytes:
                    self._num_damaged += not entry.name.endswith(_TEMPORARY)
                    os.unlink(entry.path)
                else:
                    found.append((stat.st_mtime_ns, block_hash))
        for _, block_hash in sorted(found):
            self._add(block_hash)
        while len(self._index) > self._max_blocks:
            self._remove(next(iter(self._index)))

    def _read(self, block_hash: bytes, slot: int) -> bool:
        path, block = self._path(block_hash), memoryview(self._memory[slot])
        told = bytearray(_SUM_BYTES)
        try:
            with open(path, "rb", buffering=0) as file:
                num_bytes = os.readv(file.fileno(), [told, block])
                at_end = not file.read(1)
                # Its time is that of its last use: what a later process takes over is in order.
                os.utime(file.fileno())
        except OSError as error:
            _log.warning("%s cannot be read: %s", path, error)
            num_bytes, at_end = 0, False
        return num_bytes == self._file_bytes and at_end and told == _sum(block_hash, block)

    def _drop_damaged(self, block_hash: bytes) -> None:
        self._num_damaged += 1
        path = self._path(block_hash)
        _log.warning("%s is damaged: its block counts as not there", path)
        try:
            self._remove(block_hash)
        except OSError as error:
            raise TransferError(f"{path} is damaged, and stays: {error}") from error

    def _write(self, block_hash: bytes, slot: int) -> None:
        path, block = self._path(block_hash), memoryview(self._memory[slot])
        aside = path.with_suffix(_TEMPORARY)
        try:
            path.parent.mkdir(exist_ok=True)
            with open(aside, "wb", buffering=0) as file:
                parts: list[bytes | memoryview] = [_sum(block_hash, block), block]
                if os.writev(file.fileno(), parts) != self._file_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            aside.rename(path)
        except OSError:
            # What was written takes room that is short, as a rule. The next start clears the rest.
            with contextlib.suppress(OSError):
                aside.unlink()
            raise

    def _add(self, block_hash: bytes) -> None:
        self._index[block_hash] = None
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = None

    def _remove(self, block_hash: bytes) -> None:
        self._path(block_hash).unlink(missing_ok=True)
        del self._index[block_hash]
        if block_hash in self._stored:
            del self._stored[block_hash]
        else:
            self._removed[block_hash] = None


def _sum(block_hash: bytes, block: memoryview) -> bytes:
    # With the hash, so that a block under another's name does not pass.
    digest = hashlib.sha256(block_hash)
    digest.update(block)
    return digest.digest()[:_SUM_BYTES]


def _hash_of(name: str) -> bytes | None:
    try:
        block_hash = bytes.fromhex(name)
    except ValueError:
        return None
    return block_hash if len(block_hash) == HASH_BYTES else None
