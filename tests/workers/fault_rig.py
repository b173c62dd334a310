"""Two workers over a wire that misbehaves, with every block checked before it is read.

Checked mode: what a sender pushes is noted by checksum, block by block; a receiver's reserved
blocks are filled with NaN; and before a request with received KV joins the batch, each of its
blocks must have the checksum that was pushed for it. So a block that was never written, written
for somebody else, or changed afterwards is caught even where the tokens would come out the same.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from tests.workers.conftest import Pair, engine_config
from tests.workers.probe import Answer, Probe
from tests.workers.test_pair import prompts, run_alone

from baton.decode_worker.config import DecodeWorkerConfig
from baton.decode_worker.worker import DecodeWorker
from baton.engine.engine import Engine, Reservation
from baton.kvtransfer.collective import CollectiveWire
from baton.kvtransfer.connector import Connector, Notice, PeerKey
from baton.kvtransfer.faulty import Faults, FaultyWire
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.local import LocalFabric, LocalWire
from baton.kvtransfer.nixl import NixlWire
from baton.kvtransfer.wire import ConnectorLimits, Wire
from baton.kvtransfer.wire_connector import WireConnector
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.prefill_worker.worker import PrefillWorker
from baton.protos.errors import TransferError
from baton.protos.types import RequestOutput, Role, SamplingParams

SAMPLING = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LIMITS = ConnectorLimits(connect_timeout_s=0.5, write_timeout_s=0.5, drain_timeout_s=0.05)
PATIENCE_S = 60.0


@dataclass
class Ledger:
    """Checksums of pushed blocks by (request, epoch, block of the request), and what was wrong."""

    pushed: dict[tuple[str, int, int], int] = field(default_factory=dict)
    reserved: dict[tuple[str, int], Reservation] = field(default_factory=dict)
    num_checked: int = 0
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
    num_remote: int = 0
    num_requests: int = 0
    num_aborted: int = 0

    async def run(self, seed: int) -> None:
        """One schedule: some requests under some faults, some aborted; then all must be well."""
        rng = random.Random(seed)
        self.faults.choose(rng.randint(1, 3), rng.choice([0.2, 0.5, 1.0]))
        waits = [self._request(rng, seed) for _ in range(rng.randint(1, 3))]
        await asyncio.gather(*waits)
        self.faults.stop()
        await self.pair.check_all_free()
        assert not self.ledger.wrong, f"seed {seed}: {self.ledger.wrong}"
        # Not before: an aborted request may be received up to here.
        self.ledger.reserved.clear()
        self.ledger.pushed.clear()

    async def _request(self, rng: random.Random, seed: int) -> None:
        number = rng.randrange(len(self.prompts))
        salt = f"{seed}/{rng.randrange(2)}".encode()
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
    prefill = PrefillWorker(
        PrefillWorkerConfig(
            engine=engine_config(Role.PREFILL),
            connector=connector,
            reserve_timeout_s=2.0,
            pull_timeout_s=1.0,
            lease_s=0.3,
        ),
        connectors=make,
    )
    decode = DecodeWorker(
        DecodeWorkerConfig(
            engine=engine_config(Role.DECODE),
            connector=connector,
            prefill_timeout_s=3.0,
            handshake_timeout_s=2.0,
            lease_s=0.3,
        ),
        connectors=make,
    )
    pair = Pair(prefill, decode, await prefill.start(), await decode.start())
    ledger.watch(decode.host.engine)
    ledger.watch(prefill.host.engine)
    try:
        async with Probe(pair.decode_member, "") as gateway:
            yield Rig(pair, gateway, faults, ledger, asked, expected)
    finally:
        await decode.close()
        await prefill.close()


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
