"""How fast blocks move between two processes: our connector, raw NIXL, and memcpy, side by side.

    python -m benchmarks.kv_transfer [--repeats 15] [--device cuda] [--output FILE]

Ours is `Connector.push` of scattered blocks, from the call to its `done`: thread hand-over, index
lists, merging, notice and all. Raw is one NIXL WRITE of one flat run of the same bytes between
two agents of their own over the same memory, its polls spinning on the calling thread, without a
notice. A row of several pushes queues them all at once, as the chunks of a prompt do; raw does
its writes one after the other. The three take turns within every repeat, so the machine's moods
hit them alike, and each repeat moves on through the pool, so no side gets a warm cache that the
other lacks. A row's `ratio` is that of the medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from baton.kvtransfer.connector import Notice, PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.nixl import NixlConnector
from benchmarks.results_file import percentiles, write_results

POOL_BYTES: Final = 256 << 20
SIZES: Final = (64 << 10, 1 << 20, 8 << 20, 64 << 20)
# Layers, KV heads and width of a block of 16 tokens: a small model, 1B, 8B.
LAYOUTS: Final = (
    KVLayout(num_layers=4, kv_heads=4, block_size=16, head_dim=64, dtype="bfloat16"),
    KVLayout(num_layers=16, kv_heads=8, block_size=16, head_dim=64, dtype="bfloat16"),
    KVLayout(num_layers=32, kv_heads=8, block_size=16, head_dim=128, dtype="bfloat16"),
)
WARM_UPS: Final = 3
QUEUED: Final = 8

BlockLists = list[tuple[list[int], list[int]]]


class Raw:
    """A bare NIXL agent over the same pool."""

    def __init__(self, pool: torch.Tensor, name: str) -> None:
        from nixl_cu13._api import nixl_agent, nixl_agent_config

        self.name = name
        self.address = pool.data_ptr()
        self.memory = "VRAM" if pool.is_cuda else "DRAM"
        config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self.agent = nixl_agent(name, config)
        self.agent.register_memory(pool)
        self.metadata: bytes = self.agent.get_agent_metadata()
        self._remote: tuple[str, int] | None = None

    def connect(self, name: str, metadata: bytes, address: int) -> None:
        self.agent.add_remote_agent(metadata)
        self._remote = (name, address)
        self.write(0, 4096)

    def write(self, offset: int, num_bytes: int) -> None:
        assert self._remote is not None
        name, address = self._remote
        local = self.agent.get_xfer_descs([(self.address + offset, num_bytes, 0)], self.memory)
        remote = self.agent.get_xfer_descs([(address + offset, num_bytes, 0)], self.memory)
        handle = self.agent.initialize_xfer("WRITE", local, remote, name)
        state = self.agent.transfer(handle)
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        assert state == "DONE", state
        self.agent.release_xfer_handle(handle)


def make_pool(layout: KVLayout, device: str) -> torch.Tensor:
    dtype = getattr(torch, layout.dtype)
    shape = (POOL_BYTES // layout.block_bytes, *layout.block_shape)
    return torch.zeros(shape, dtype=dtype, device=device)


def receive(pipe: Connection, layout: KVLayout, device: str) -> None:
    """The receiving process: two agents over one pool, until the pipe says something."""
    torch.set_num_threads(1)
    pool = make_pool(layout, device)
    key = PeerKey("receiver", "1")
    connector = NixlConnector(pool, layout, key, on_notice=lambda key, notice: None)
    connector.expect(1)
    raw = Raw(pool, "raw-receiver")
    pipe.send((connector.local_info(), raw.metadata))
    while not pipe.poll(0.002):
        raw.agent.get_new_notifs()
    connector.close()


@dataclass(frozen=True, slots=True)
class Case:
    """One row: pushes of so many bytes each, as blocks of a layout, adjacent or anywhere."""

    num_bytes: int
    layout: KVLayout
    scattered: bool
    num_pushes: int = 1

    @property
    def num_blocks(self) -> int:
        return self.num_bytes // self.layout.block_bytes

    def describe(self) -> str:
        order = "scattered" if self.scattered else "adjacent"
        pushes = f"{self.num_pushes} queued pushes of" if self.num_pushes > 1 else "push of"
        block = label(self.layout.block_bytes)
        return f"{pushes} {label(self.num_bytes)} as {self.num_blocks} {order} blocks of {block}"

    def block_lists(self, first: int, rng: random.Random) -> BlockLists:
        """Local and remote blocks of each push; adjacent ones begin at block `first`."""
        lists: BlockLists = []
        pool_blocks = POOL_BYTES // self.layout.block_bytes
        for number in range(self.num_pushes):
            start = (first + number * self.num_blocks) % pool_blocks
            local = remote = list(range(start, start + self.num_blocks))
            if self.scattered:
                local = rng.sample(range(pool_blocks), self.num_blocks)
                remote = rng.sample(range(pool_blocks), self.num_blocks)
            lists.append((local, remote))
        return lists


def label(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"


class Sender:
    """This process's side of one layout: everything connected and warm."""

    def __init__(self, layout: KVLayout, device: str, peer: PeerInfo, raw_metadata: bytes) -> None:
        self.pool = make_pool(layout, device)
        self.pool.view(-1).view(torch.int16).random_()
        self.bytes = self.pool.view(-1).view(torch.uint8)
        self.copy = self.bytes.clone()
        self.raw = Raw(self.pool, "raw-sender")
        self.raw.connect("raw-receiver", raw_metadata, peer.pool_address)
        self.connector = NixlConnector(
            self.pool, layout, PeerKey("sender", "1"), on_notice=lambda key, notice: None
        )
        self.connector.connect(peer)
        self._peer = peer.key

    def push(self, lists: BlockLists) -> None:
        """Queues a push for each pair of block lists, and waits for all of them."""
        done = threading.Semaphore(0)
        errors: list[Exception] = []

        def finish(error: Exception | None) -> None:
            if error is not None:
                errors.append(error)
            done.release()

        for local, remote in lists:
            notice = Notice("benchmark", 1, 0, len(local))
            self.connector.push(self._peer, local, remote, notice, finish)
        for _ in lists:
            done.acquire()
        assert not errors, errors

    def write_raw(self, offsets: list[int], num_bytes: int) -> None:
        for offset in offsets:
            self.raw.write(offset, num_bytes)

    def copy_memory(self, offsets: list[int], num_bytes: int) -> None:
        for offset in offsets:
            end = offset + num_bytes
            self.copy[offset:end].copy_(self.bytes[offset:end])
        if self.copy.is_cuda:
            torch.cuda.synchronize()

    def close(self) -> None:
        self.connector.close()


def timed(action: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


def measure(sender: Sender, case: Case, repeats: int) -> dict[str, Any]:
    rng = random.Random(case.num_bytes)
    total_bytes = case.num_bytes * case.num_pushes
    gbps: dict[str, list[float]] = {"ours": [], "raw": [], "memcpy": []}
    for repeat in range(WARM_UPS + repeats):
        first = repeat * total_bytes
        offsets = [(first + i * case.num_bytes) % POOL_BYTES for i in range(case.num_pushes)]
        lists = case.block_lists(offsets[0] // case.layout.block_bytes, rng)
        sides = {
            "ours": partial(sender.push, lists),
            "raw": partial(sender.write_raw, offsets, case.num_bytes),
            "memcpy": partial(sender.copy_memory, offsets, case.num_bytes),
        }
        for name in rng.sample(list(sides), len(sides)):
            seconds = timed(sides[name])
            if repeat >= WARM_UPS:
                gbps[name].append(total_bytes / seconds / 1e9)
    return row(case, gbps)


def row(case: Case, gbps: dict[str, list[float]]) -> dict[str, Any]:
    spread = {name: percentiles(samples) for name, samples in gbps.items()}
    return {
        "connector": "nixl",
        "measure": case.describe(),
        "ours": spread["ours"]["p50"],
        "raw": spread["raw"]["p50"],
        "memcpy": spread["memcpy"]["p50"],
        "unit": "GB/s",
        "ratio": round(spread["ours"]["p50"] / spread["raw"]["p50"], 3),
        "bytes": case.num_bytes,
        "block_bytes": case.layout.block_bytes,
        "pushes": case.num_pushes,
        "spread": spread,
    }


def cases(layout: KVLayout) -> Iterator[Case]:
    for num_bytes in SIZES:
        if num_bytes >= layout.block_bytes:
            yield Case(num_bytes, layout, scattered=True)
            if num_bytes > layout.block_bytes:
                yield Case(num_bytes, layout, scattered=False)
            if num_bytes <= POOL_BYTES // QUEUED // 2:
                yield Case(num_bytes, layout, scattered=True, num_pushes=QUEUED)


def run_layout(layout: KVLayout, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=receive, args=(theirs, layout, device))
    process.start()
    try:
        sender = Sender(layout, device, *ours.recv())
        for case in cases(layout):
            big = case.num_bytes * case.num_pushes >= 64 << 20
            found = measure(sender, case, repeats if big else 3 * repeats)
            print(
                f"{found['measure']:<64} ours {found['ours']:6.2f}  raw {found['raw']:6.2f}"
                f"  memcpy {found['memcpy']:6.2f} GB/s  ratio {found['ratio']:.2f}",
                flush=True,
            )
            yield found
        sender.close()
        ours.send("done")
        process.join(30)
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="KV pushes between two processes against NIXL.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", help="default: benchmarks/results/kv_DEVICE.json")
    arguments = parser.parse_args()
    device = arguments.device
    output = arguments.output or f"benchmarks/results/kv_{device}.json"
    # As the connector sets them, but before raw NIXL is loaded.
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    if device == "cuda":
        os.environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "on")
    torch.set_num_threads(1)
    repeats = arguments.repeats
    rows = [found for layout in LAYOUTS for found in run_layout(layout, device, repeats)]
    settings = {
        "device": device,
        "repeats_of_64_mib": repeats,
        "warm_ups": WARM_UPS,
        "pool_bytes": POOL_BYTES,
    }
    write_results(output, rows, settings)


if __name__ == "__main__":
    main()
