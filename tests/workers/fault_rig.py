"""Two workers over a wire that misbehaves, with every block checked before it is read.

Checked mode: what a sender pushes is noted by checksum, block by block; a receiver's reserved
blocks are filled with NaN; and before a request with received KV joins the batch, each of its
blocks must have the checksum that was pushed for it. So a block that was never written, written
for somebody else, or changed afterwards is caught even where the tokens would come out the same.

Both pools are so small that blocks are evicted all the time, to host memory and to a disk whose
files somebody damages; what the disk returns must have been stored there under the same hash.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tests.workers.conftest import Pair, engine_config
from tests.workers.probe import Answer, Probe
from tests.workers.test_pair import prompts, run_alone

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.engine.engine import Engine, Reservation
from baton.engine.tiers import space as tier_space
from baton.kvtransfer.collective import CollectiveWire
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.kvtransfer.faulty import Faults, FaultyTier, FaultyWire
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.local import LocalFabric, LocalWire
from baton.kvtransfer.nixl import NixlWire
from baton.kvtransfer.tiers.config import TierConfig
from baton.kvtransfer.tiers.factory import make_tiers
from baton.kvtransfer.tiers.tier import Tier, TierSpace
from baton.kvtransfer.wire import ConnectorLimits, Wire
from baton.kvtransfer.wire_connector import WireConnector
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.worker import PrefillWorker
from baton.protos.errors import TransferError
from baton.protos.types import RequestOutput, Role, SamplingParams

SAMPLING = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LIMITS = ConnectorLimits(connect_timeout_s=0.5, write_timeout_s=0.5, drain_timeout_s=0.05)
PATIENCE_S = 60.0
# A pool has room for two or three prompts, host memory for one or two, the disk for six.
POOL_BLOCKS, HOST_BLOCKS, DISK_BLOCKS = 40, 20, 80
BLOCK_GIB = 65536 / (1 << 30)


@dataclass
class Ledger:
    """Checksums of pushed blocks by (request, epoch, block of the request), those of blocks on a
    disk by its space and their hash, and what was wrong.
    """

    pushed: dict[tuple[str, int, int], int] = field(default_factory=dict)
    reserved: dict[tuple[str, int], Reservation] = field(default_factory=dict)
    stored: defaultdict[tuple[int, bytes], set[int]] = field(
        default_factory=lambda: defaultdict(set)
    )
    num_checked: int = 0
    num_checked_of_disk: int = 0
    wrong: list[str] = field(default_factory=list)

    def watch(self, engine: Engine) -> None:
        """Fills what `engine` reserves, and checks what it receives."""
        reserve, receive = engine.reserve, engine.receive
        borrow, end_move = engine.borrow, engine.end_move
        size = engine.config.block_size

        def fill(found: Reservation | None) -> Reservation | None:
            if found is not None:
                self.reserved[found.request_id, found.epoch] = found
                fresh = list(found.block_ids[found.num_cached_tokens // size :])
                engine.pool.tensor[fresh] = float("nan")
            return found

        def check(request_id: str, epoch: int, num_tokens: int | None) -> None:
            found = self.reserved[request_id, epoch]
            end = len(found.block_ids) if num_tokens is None else num_tokens // size
            for number in range(found.num_cached_tokens // size, end):
                self._check(engine, request_id, epoch, number, found.block_ids[number])

        def checked(request_id: str, epoch: int, first: RequestOutput) -> None:
            check(request_id, epoch, None)
            receive(request_id, epoch, first)

        def checked_move(move_id: str, epoch: int = 0, *, num_tokens: int = 0) -> None:
            if num_tokens:
                check(move_id, epoch, num_tokens)
            end_move(move_id, epoch, num_tokens=num_tokens)

        engine.reserve = lambda request: fill(reserve(request))  # type: ignore[method-assign]
        engine.borrow = lambda *move: fill(borrow(*move))  # type: ignore[method-assign]
        engine.receive, engine.end_move = checked, checked_move  # type: ignore[method-assign]

    def _check(self, engine: Engine, request_id: str, epoch: int, number: int, block: int) -> None:
        self.num_checked += 1
        sent = self.pushed.get((request_id, epoch, number))
        if sent != checksum(engine.pool.tensor, block):
            filled = "filled" if engine.pool.tensor[block].isnan().all() else "other data"
            was = "never pushed" if sent is None else filled
            self.wrong.append(f"block {number} of {request_id} in epoch {epoch}: {was}")


class NotingConnector(WireConnector):
    """Notes the checksum of each block that it pushes."""

    ledger: Ledger
    pool: torch.Tensor

    def push(
        self,
        key: PeerKey,
        local_blocks: Sequence[int],
        remote_blocks: Sequence[int],
        notice: Notice,
        done: Callable[[TransferError | None], None],
        *,
        skip_tokens: int = 0,
    ) -> None:
        for offset, block in enumerate(local_blocks):
            place = (notice.request_id, notice.epoch, notice.first_block + offset)
            self.ledger.pushed[place] = checksum(self.pool, block)
        super().push(key, local_blocks, remote_blocks, notice, done, skip_tokens=skip_tokens)


class NotingTier(FaultyTier):
    """Notes the checksum of each block that is stored, and checks each that is loaded."""

    def __init__(self, tier: Tier, faults: Faults, ledger: Ledger, memory: torch.Tensor) -> None:
        super().__init__(tier, faults)
        self._ledger = ledger
        self._memory = memory

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        count = super().load(hashes, slots)
        for block_hash, slot in zip(hashes[:count], slots, strict=False):
            self._ledger.num_checked_of_disk += 1
            known = self._ledger.stored[id(self._memory), block_hash]
            if checksum(self._memory, slot) not in known:
                self._ledger.wrong.append(f"the disk's block {block_hash.hex()}")
        return count

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        for block_hash, slot in zip(hashes, slots, strict=True):
            known = self._ledger.stored[id(self._memory), block_hash]
            known.add(checksum(self._memory, slot))
        return super().store(hashes, slots)


def checksum(pool: torch.Tensor, block: int) -> int:
    return zlib.crc32(pool[block].numpy().tobytes())


@dataclass
class Rig:
    """A pair, the faults of its wires, and what it should answer."""

    pair: Pair
    gateway: Probe
    faults: Faults
    ledger: Ledger
    prompts: list[list[int]]
    expected: list[list[int]]
    disk: Path
    num_damaged: int = 0
    num_remote: int = 0
    num_requests: int = 0
    num_aborted: int = 0

    async def run(self, seed: int) -> None:
        """One schedule: some requests under some faults, some aborted; then all must be well."""
        rng = random.Random(seed)
        self.faults.choose(rng.randint(1, 3), rng.choice([0.2, 0.5, 1.0]))
        if rng.random() < 0.3:
            self._damage(rng)
        waits = [self._request(rng, seed) for _ in range(rng.randint(1, 3))]
        await asyncio.gather(*waits)
        self.faults.stop()
        await self.pair.check_all_free()
        assert not self.ledger.wrong, f"seed {seed}: {self.ledger.wrong}"
        # Not before: an aborted request may be received up to here.
        self.ledger.reserved.clear()
        self.ledger.pushed.clear()

    def _damage(self, rng: random.Random) -> None:
        """One of the files on the disks loses its end, a bit of it flips, or it is gone."""
        files = [path for path in sorted(self.disk.glob("*/*/*")) if len(path.name) == 32]
        if not files:
            return
        path = rng.choice(files)
        try:
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            match rng.randrange(3):
                case 0:
                    path.write_bytes(content[: rng.randrange(len(content))])
                case 1:
                    path.write_bytes(content)
                case _:
                    path.unlink()
            self.num_damaged += 1
        except FileNotFoundError:
            return  # evicted meanwhile

    async def _request(self, rng: random.Random, seed: int) -> None:
        number = rng.randrange(len(self.prompts))
        # Prefixes come again in other schedules, when they have left the pools.
        salt = f"{seed // 16}/{rng.randrange(2)}".encode()
        abort_after_s = rng.random() * 0.2 if rng.random() < 0.25 else None
        await asyncio.sleep(rng.random() * 0.05)
        pull_from = self.pair.decode_member if rng.random() < 0.5 else None
        if pull_from is not None:
            # So that there is something to pull.
            head = self.prompts[number][: rng.randrange(20, 200)]
            await self.gateway.wait(self.gateway.submit(head, SAMPLING, salt=salt))
        handle = self.gateway.submit(
            self.prompts[number],
            SAMPLING,
            prefill=[self.pair.prefill_member],
            salt=salt,
            pull_from=pull_from,
        )
        self.num_requests += 1
        if abort_after_s is not None:
            await asyncio.sleep(abort_after_s)
            self.gateway.abort(handle)
            self.num_aborted += 1
            return
        answer = await self.gateway.wait(handle)
        assert answer.done is not None
        assert answer.done.finish_reason == "length", f"seed {seed}: {answer.done}"
        assert answer.tokens == self.expected[number], f"seed {seed}: prompt {number}"
        self.num_remote += bool(answer.done.prefilled_by)

    async def num_from_host_memory(self) -> int:
        """Blocks that came back from there to a pool."""
        count = 0
        for worker in (self.pair.prefill, self.pair.decode):
            call = worker.host.loop.call(lambda engine: engine.statistics().tiers)
            found = await asyncio.wrap_future(call)
            assert found is not None
            count += found.num_host
        return count

    async def good_transfer_s(self) -> float:
        """Seconds until a request's KV comes from the other worker again, with no fault left."""
        began_s = time.monotonic()
        number = len(self.prompts) - 1
        while time.monotonic() - began_s < PATIENCE_S:
            salt = f"heal {time.monotonic_ns()}".encode()
            handle = self.gateway.submit(
                self.prompts[number], SAMPLING, prefill=[self.pair.prefill_member], salt=salt
            )
            answer: Answer = await self.gateway.wait(handle)
            assert answer.tokens == self.expected[number]
            if answer.done is not None and answer.done.prefilled_by:
                return time.monotonic() - began_s
        raise AssertionError("the pair does not heal")


@asynccontextmanager
async def rig(
    connector: str, seed: int, faulty: Callable[[Wire, Faults], Wire] = FaultyWire
) -> AsyncIterator[Rig]:
    """`connector` is local, nixl or nccl (gloo on CPU); `faulty` wraps its wire."""
    faults, ledger, fabric = Faults(rng=random.Random(seed)), Ledger(), LocalFabric()
    make = partial(_make, partial(_faulty, faulty, faults), ledger, fabric)
    asked = [prompt for prompt in prompts(9) if len(prompt) > 16]
    expected = await asyncio.to_thread(run_alone, [(prompt, SAMPLING) for prompt in asked])
    with (
        tempfile.TemporaryDirectory() as disk,
        patch.object(tier_space, "make_tiers", partial(_make_tiers, faults, ledger)),
    ):
        prefill, decode = _workers(connector, make, disk)
        pair = Pair(prefill, decode, await prefill.start(), await decode.start())
        ledger.watch(decode.host.engine)
        ledger.watch(prefill.host.engine)
        try:
            async with Probe(pair.decode_member, "") as gateway:
                yield Rig(pair, gateway, faults, ledger, asked, expected, Path(disk))
        finally:
            await decode.close()
            await prefill.close()


def _workers(
    connector: str, make: Callable[..., Connector], disk: str
) -> tuple[PrefillWorker, DecodeWorker]:
    tiers = TierConfig(
        cpu_gib=HOST_BLOCKS * BLOCK_GIB, disk_path=disk, disk_gib=DISK_BLOCKS * BLOCK_GIB
    )
    common: dict[str, Any] = {"connector": connector, "lease_s": 0.3, "pull_timeout_s": 1.0}
    prefill, decode = (
        engine_config(role, num_blocks=POOL_BLOCKS, kv_tiers=tiers)
        for role in (Role.PREFILL, Role.DECODE)
    )
    return PrefillWorker(
        PrefillWorkerConfig(engine=prefill, reserve_timeout_s=2.0, **common), connectors=make
    ), DecodeWorker(
        DecodeWorkerConfig(engine=decode, prefill_timeout_s=3.0, handshake_timeout_s=2.0, **common),
        connectors=make,
    )


def _make_tiers(faults: Faults, ledger: Ledger, config: TierConfig, space: TierSpace) -> list[Tier]:
    return [NotingTier(t, faults, ledger, space.memory) for t in make_tiers(config, space)]


def _faulty(faulty: Callable[[Wire, Faults], Wire], faults: Faults, wire: Wire) -> Wire:
    return faulty(wire, faults)


def _make(
    faulty: Callable[[Wire], Wire],
    ledger: Ledger,
    fabric: LocalFabric,
    name: str,
    pool: torch.Tensor,
    layout: KVLayout,
    key: PeerKey,
    on_notice: Callable[[PeerKey, Notice], None],
    host: str,
) -> Connector:
    wire: Wire
    if name == "local":
        wire = LocalWire(pool, layout, key, fabric)
    elif name == "nixl":
        wire = NixlWire(pool, layout, key)
    else:
        wire = CollectiveWire(pool, layout, key, host=host)
    connector = NotingConnector(faulty(wire), on_notice=on_notice, limits=LIMITS)
    connector.ledger, connector.pool = ledger, pool
    return connector
