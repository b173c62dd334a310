"""Blocks of a model on two ranks leave the pool and come back whole, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.driving import VOCAB, save_model
from tests.engine.parallel.ranks import ThreadRanks
from tests.engine.tiers.test_tiers import MODEL_BLOCK_BYTES, Served
from tests.kvtransfer.lmcache_server import needs_lmcache

from baton.engine.parallel.tiers import RankTiers
from baton.engine.tiers.ranks import SharedTier, changes_from_json
from baton.engine.tiers.statistics import TierStatistics
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.kvtransfer.tiers.config import TierConfig
from baton.kvtransfer.tiers.tier import TierStatistics as StoreStatistics
from baton.protos.errors import TransferError
from baton.protos.types import KvEvents

Prompts = list[list[int]]
Answers = dict[str, list[int]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prompts, list[list[int]]]:
    """A model, prompts, and what it answers on one rank without tiers."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "Llama")
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randint(3, VOCAB, (100,), generator=generator).tolist() for _ in range(3)]
    plain = Served(folder, TierConfig())
    expected = [plain.answer(str(number), prompt) for number, prompt in enumerate(prompts)]
    plain.close()
    return folder, prompts, expected


def below(**where: Any) -> TierConfig:
    """Host memory holds one of the prompts, what is below it all of them."""
    return TierConfig(cpu_gib=24 * MODEL_BLOCK_BYTES / (1 << 30), **where)


def on_two_ranks(
    asked: tuple[Path, Prompts, list[list[int]]],
    tiers: TierConfig,
    enough: Callable[[TierStatistics], bool],
) -> TierStatistics:
    """Asks every prompt, again until it is `enough`; every answer is that of one rank."""
    folder, prompts, expected = asked
    served = Served(folder, tiers, ThreadRanks(), tensor_parallel_size=2)
    end_s = time.monotonic() + 60.0
    is_enough = False
    while not is_enough:
        assert time.monotonic() < end_s
        for prompt, answer in zip(prompts, expected, strict=True):
            assert served.answer(str(time.monotonic()), prompt) == answer
        found = served.engine.statistics().tiers
        assert found is not None
        is_enough = enough(found)
    closed = served.close()
    assert closed is not None
    return closed


def has_hits(found: TierStatistics) -> bool:
    return found.num_host > 0 and found.lower[0].num_hits >= 12


def has_damage(found: TierStatistics) -> bool:
    return found.lower[0].store.num_damaged > 0


def test_both_parts_of_a_block_come_back_from_memory_and_disk(
    asked: tuple[Path, Prompts, list[list[int]]], tmp_path: Path
) -> None:
    tiers = below(disk_path=str(tmp_path), disk_gib=1.0)
    found = on_two_ranks(asked, tiers, has_hits)
    assert found.host.num_blocks == 24
    assert found.lower[0].num_errors == 0
    # Another process finds both ranks' files; of a block that one rank lost, it uses neither part.
    folders = sorted(tmp_path.glob("worker-*"))
    assert len(folders) == 2
    files = [sorted(path.name for path in folder.glob("??/*")) for folder in folders]
    assert files[0] == files[1]
    damaged = next(iter(folders[1].glob("??/*")))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    # Which blocks are read back, and which computed, is a matter of time: until it was read.
    later = on_two_ranks(asked, tiers, lambda f: has_hits(f) and has_damage(f))
    assert later.lower[0].store.num_damaged == 1


@needs_lmcache
def test_both_parts_of_a_block_come_back_from_lmcache(
    asked: tuple[Path, Prompts, list[list[int]]], lmcache_server: LMCacheServer
) -> None:
    tiers = below(lmcache=lmcache_server.address)
    on_two_ranks(asked, tiers, lambda found: found.lower[0].num_stored >= 24)
    # It has nothing of its own.
    on_two_ranks(asked, tiers, has_hits)


class Memory:
    """A tier that keeps names only, and can fail."""

    name = "memory"

    def __init__(self, *hashes: bytes) -> None:
        self.kept = list(hashes)
        self.fails = False
        self._changes = KvEvents(stored=tuple(hashes))

    def lookup(self, hashes: Sequence[bytes]) -> int:
        if self.fails:
            raise TransferError("it is not there")
        count = 0
        while count < len(hashes) and hashes[count] in self.kept:
            count += 1
        return count

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        return self.lookup(hashes)

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        new = [block_hash for block_hash in hashes if block_hash not in self.kept]
        self.kept += new
        self._changes = KvEvents(stored=tuple(new))
        return len(hashes)

    def lose(self, block_hash: bytes) -> None:
        self.kept.remove(block_hash)
        self._changes = KvEvents(removed=(block_hash,))

    def drain_changes(self) -> KvEvents:
        changes, self._changes = self._changes, KvEvents()
        return changes

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(num_blocks=len(self.kept), num_bytes=0, max_bytes=0)

    def close(self) -> None:
        """Nothing is open."""


class Rank(RankTiers):
    """Another rank, in this thread."""

    def __init__(self, tier: Memory) -> None:
        self._tiers = [tier]

    def begin(self, op: str, **said: Any) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        try:
            future.set_result(self.do({"op": op, **said}))
        except TransferError as error:
            future.set_exception(error)
        return future


def test_a_block_is_there_when_every_rank_has_its_part() -> None:
    a, b, c = b"a" * 16, b"b" * 16, b"c" * 16
    own, other = Memory(a, b), Memory(a)
    tier = SharedTier(own, 0, [Rank(other)], [other.drain_changes()])
    assert tier.drain_changes() == KvEvents(stored=(a,))
    assert tier.lookup([a, b]) == 1
    assert tier.load([b], [0]) == 0
    assert tier.store([b, c], [0, 1]) == 2
    assert set(tier.drain_changes().stored) == {b, c}
    other.lose(a)
    assert tier.lookup([a, b]) == 0
    assert tier.drain_changes() == KvEvents(removed=(a,))
    for one in (own, other):
        one.fails = True
        with pytest.raises(TransferError, match="it is not there"):
            tier.lookup([b])
        one.fails = False
    assert changes_from_json([[a.hex()], []]) == KvEvents(removed=(a,))
