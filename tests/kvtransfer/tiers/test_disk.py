"""The disk tier: what comes back is what was stored, or nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.tiers.config import TierConfig
from baton.kvtransfer.tiers.disk import DiskTier
from baton.kvtransfer.tiers.tier import TierSpace
from baton.protos.errors import ConfigError, TransferError

LAYOUT = KVLayout(num_layers=2, kv_heads=1, block_size=4, head_dim=8, dtype="float32")
FILE_BYTES = 4096


def new_hash(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


@pytest.fixture
def space() -> TierSpace:
    generator = torch.Generator().manual_seed(1)
    memory = torch.randint(0, 256, (16, LAYOUT.block_bytes), dtype=torch.uint8, generator=generator)
    return TierSpace(memory=memory, layout=LAYOUT, model_digest="m1")


class Opener:
    """Opens tiers in one folder, and closes them at the end."""

    def __init__(self, root: Path, space: TierSpace) -> None:
        self._root = root
        self._space = space
        self._open: list[DiskTier] = []

    def __call__(self, max_blocks: int = 100, space: TierSpace | None = None) -> DiskTier:
        tier = DiskTier(str(self._root), max_blocks * FILE_BYTES, space or self._space)
        self._open.append(tier)
        return tier

    def again(
        self, tier: DiskTier, max_blocks: int = 100, space: TierSpace | None = None
    ) -> DiskTier:
        """As another process finds what this one left."""
        self._open.remove(tier)
        tier.close()
        return self(max_blocks, space)

    def close(self) -> None:
        for tier in self._open:
            tier.close()


@pytest.fixture
def open_tier(tmp_path: Path, space: TierSpace) -> Iterator[Opener]:
    opener = Opener(tmp_path, space)
    yield opener
    opener.close()


def files(root: Path) -> list[Path]:
    return sorted(root.glob("worker-*/??/*"))


def test_blocks_come_back_in_other_slots(open_tier: Opener, space: TierSpace) -> None:
    tier = open_tier()
    hashes = [new_hash(number) for number in range(4)]
    assert tier.lookup(hashes) == 0
    assert tier.store(hashes[:3], [0, 1, 2]) == 3
    assert tier.lookup(hashes) == 3
    assert tier.load(hashes, [10, 11, 12, 13]) == 3
    assert torch.equal(space.memory[10:13], space.memory[0:3])
    assert set(tier.drain_changes().stored) == set(hashes[:3])
    assert not tier.drain_changes()


def test_it_never_holds_more_than_it_may(open_tier: Opener, tmp_path: Path) -> None:
    tier = open_tier(max_blocks=3)
    hashes = [new_hash(number) for number in range(5)]
    tier.store(hashes[:3], [0, 1, 2])
    tier.load(hashes[:1], [9])
    assert tier.store(hashes[3:], [3, 4]) == 2
    assert len(files(tmp_path)) == tier.statistics().num_blocks == 3
    assert tier.statistics().num_bytes <= tier.statistics().max_bytes
    # The one that was read last stays; the least recently used two went.
    assert [tier.lookup([h]) for h in hashes] == [1, 0, 0, 1, 1]


def test_a_new_process_takes_over_what_is_left(open_tier: Opener, space: TierSpace) -> None:
    hashes = [new_hash(number) for number in range(3)]
    tier = open_tier()
    tier.store(hashes, [0, 1, 2])
    again = open_tier.again(tier)
    assert set(again.drain_changes().stored) == set(hashes)
    assert again.load(hashes, [5, 6, 7]) == 3
    assert torch.equal(space.memory[5:8], space.memory[0:3])


def test_a_smaller_limit_evicts_what_is_over_it(open_tier: Opener, tmp_path: Path) -> None:
    tier = open_tier()
    tier.store([new_hash(number) for number in range(5)], [0, 1, 2, 3, 4])
    assert open_tier.again(tier, max_blocks=2).statistics().num_blocks == 2
    assert len(files(tmp_path)) == 2


def test_what_was_read_last_outlives_a_restart(open_tier: Opener) -> None:
    tier = open_tier()
    hashes = [new_hash(number) for number in range(3)]
    tier.store(hashes, [0, 1, 2])
    # Times of files are as fine as the kernel's ticks.
    time.sleep(0.05)
    assert tier.load(hashes[:1], [5]) == 1
    again = open_tier.again(tier, max_blocks=1)
    assert again.lookup(hashes) == 1


@pytest.mark.parametrize("changed", ["weights", "layout"])
def test_other_models_blocks_are_never_read(
    open_tier: Opener, space: TierSpace, tmp_path: Path, changed: str
) -> None:
    tier = open_tier()
    tier.store([new_hash(1)], [0])
    layout = LAYOUT if changed == "weights" else KVLayout.from_json(LAYOUT.to_json())
    if changed == "layout":
        layout = KVLayout(num_layers=2, kv_heads=1, block_size=8, head_dim=4, dtype="float32")
    digest = "m2" if changed == "weights" else "m1"
    other = TierSpace(memory=space.memory, layout=layout, model_digest=digest)
    again = open_tier.again(tier, space=other)
    assert again.lookup([new_hash(1)]) == 0
    assert files(tmp_path) == []


def test_processes_side_by_side_have_folders_of_their_own(
    open_tier: Opener, tmp_path: Path
) -> None:
    first, second = open_tier(), open_tier()
    first.store([new_hash(1)], [0])
    assert second.lookup([new_hash(1)]) == 0
    assert len(list(tmp_path.glob("worker-*"))) == 2


@pytest.mark.parametrize("damage", ["cut", "grown", "flipped", "empty", "gone", "swapped"])
def test_a_damaged_file_is_a_miss_and_goes(
    open_tier: Opener, tmp_path: Path, space: TierSpace, damage: str
) -> None:
    tier = open_tier()
    hashes = [new_hash(number) for number in range(3)]
    tier.store(hashes, [0, 1, 2])
    path = next(p for p in files(tmp_path) if p.name == hashes[1].hex())
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "swapped":
        path.write_bytes(next(p for p in files(tmp_path) if p != path).read_bytes())
    else:
        flipped = raw[:40] + bytes([raw[40] ^ 4]) + raw[41:]
        path.write_bytes(
            {"cut": raw[:-1], "grown": raw + b"x", "flipped": flipped}.get(damage, b"")
        )
    assert tier.load(hashes, [8, 9, 10]) == 1
    assert torch.equal(space.memory[8], space.memory[0])
    assert tier.statistics().num_damaged == 1
    assert not path.exists()
    assert tier.lookup(hashes) == 1
    tier.drain_changes()
    assert tier.store(hashes[1:2], [1]) == 1
    assert tier.load(hashes, [8, 9, 10]) == 3


def test_what_a_crash_left_half_written_is_cleared_away(open_tier: Opener, tmp_path: Path) -> None:
    tier = open_tier()
    tier.store([new_hash(1), new_hash(2)], [0, 1])
    first, second = files(tmp_path)
    first.with_suffix(".tmp").write_bytes(b"half")
    second.write_bytes(second.read_bytes()[:-7])
    again = open_tier.again(tier)
    assert files(tmp_path) == [first]
    assert again.statistics().num_damaged == 1


def test_a_disk_that_cannot_be_written_is_an_error_not_a_loss(
    open_tier: Opener, tmp_path: Path
) -> None:
    tier = open_tier()
    part = tmp_path / "worker-0" / new_hash(1).hex()[:2]
    part.write_text("in the way")
    with pytest.raises(TransferError, match="cannot be written"):
        tier.store([new_hash(1)], [0])
    part.unlink()
    assert tier.lookup([new_hash(1)]) == 0
    assert tier.store([new_hash(1)], [0]) == 1


def test_refusals_name_the_field(tmp_path: Path, space: TierSpace) -> None:
    with pytest.raises(ConfigError, match="a block of KV takes 4096 bytes") as small:
        DiskTier(str(tmp_path), 4000, space)
    assert small.value.param == "disk_gib"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used") as path:
        DiskTier(str(tmp_path / "file"), FILE_BYTES, space)
    assert path.value.param == "disk_path"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"cpu_gib": -1.0}, "cpu_gib"),
        ({"cpu_gib": float("nan")}, "cpu_gib"),
        ({"cpu_gib": 1.0, "disk_gib": float("inf"), "disk_path": "/x"}, "disk_gib"),
        ({"cpu_gib": 1.0, "disk_gib": 1.0}, "disk_path"),
        ({"cpu_gib": 1.0, "disk_path": "/x"}, "disk_gib"),
        ({"disk_path": "/x", "disk_gib": 1.0}, "cpu_gib"),
    ],
)
def test_configurations_that_cannot_work(values: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TierConfig(**values)  # type: ignore[arg-type]
    assert refused.value.param == field
    assert field in refused.value.message
