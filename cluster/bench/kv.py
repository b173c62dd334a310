"""How fast blocks move between two processes: a connector, its bare transport, and memcpy.

Ours is `Connector.push`, from the call to its `done`: thread hand-over, index lists, merging,
conversion, notice and all. Raw is one write of one flat run of the same bytes by the bare transport
over the same memory (NIXL: a WRITE between agents of their own; NCCL: its send; gloo, LMCache: a
TCP stream). For NIXL `raw_blocks` is a bare WRITE of the very same blocks, which tells what
scattering costs the transport from what we cost. A row of several pushes queues them all at once,
as the chunks of a prompt do; raw does its writes one after the other. The sides take turns in every
repeat, so the machine's moods hit them alike. A row's `ratio` is that of the medians.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from baton.cluster.bench.kv_cases import (
    UNLIKE_BYTES,
    BlockLists,
    Case,
    Pair,
    alike_pairs,
    cases,
    unlike_pairs,
)
from baton.cluster.bench.kv_raw import RawNixl, RawStream, serve_stream
from baton.kvtransfer.connector import Connector, Notice, PeerInfo, PeerKey
from baton.kvtransfer.factory import make_connector
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.lmcache.config import LMCacheConfig
from baton.kvtransfer.lmcache.server import LMCacheServer

WARM_UPS: Final = 3
BIG_BYTES: Final = 64 << 20
PATIENCE_S: Final = 120.0


def run(connector: str, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """All rows of one connector, as they are measured. `repeats` is for pushes of 64 MiB."""
    prepare(device)
    if connector != "lmcache":
        yield from _run_pairs(connector, device, repeats)
        return
    server = LMCacheServer(LMCacheConfig())
    server.start()
    try:
        yield from _run_pairs(f"lmcache {server.address}", device, repeats)
    finally:
        server.close()


def prepare(device: str) -> None:
    """This process's environment, before anything is measured in it."""
    # As the connector sets them, but before raw NIXL is loaded.
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    if device.startswith("cuda"):
        os.environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "on")
    torch.set_num_threads(1)


def _run_pairs(connector: str, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    for pair in alike_pairs():
        yield from run_pair(connector, pair, list(cases(pair)), device, repeats)
    for pair in unlike_pairs():
        unlike = [Case(UNLIKE_BYTES, pair, scattered=True), Case(BIG_BYTES, pair, scattered=True)]
        yield from run_pair(connector, pair, unlike, device, repeats)


def run_pair(
    connector: str, pair: Pair, found: list[Case], device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """Rows between two processes with pools of these layouts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(theirs, connector, pair, device))
    process.start()
    sender: Sender | None = None
    try:
        if not ours.poll(PATIENCE_S):
            raise RuntimeError("the receiving process does not start")
        sender = Sender(connector, pair, device, *ours.recv())
        for case in found:
            big = case.num_bytes * case.num_pushes >= BIG_BYTES
            yield measure(sender, case, repeats if big else 3 * repeats)
    finally:
        if sender is not None:
            sender.close()
        process.kill()
        process.join()


def make_pool(pair: Pair, layout: KVLayout, device: str) -> torch.Tensor:
    """One of the pair's pools, zeroed."""
    return torch.zeros(
        (pair.num_blocks(layout), *layout.block_shape),
        dtype=getattr(torch, layout.dtype),
        device=device,
    )


def _connector(name: str, pool: torch.Tensor, layout: KVLayout, worker: str) -> Connector:
    def ignore(key: PeerKey, notice: Notice) -> None:
        """The sender's `done` is what is measured."""

    return make_connector(name, pool, layout, PeerKey(worker, "1"), ignore, "127.0.0.1")


def _receive(pipe: Connection, name: str, pair: Pair, device: str) -> None:
    """The receiving process, until it is killed."""
    torch.set_num_threads(1)
    pool = make_pool(pair, pair.target, device)
    connector = _connector(name, pool, pair.target, "receiver")
    connector.expect(1)
    raw = RawNixl(pool, "raw-receiver") if name == "nixl" else None
    pipe.send((connector.local_info(), raw.metadata() if raw else serve_stream(pool)))
    while not pipe.poll(0.002):
        if raw is not None:
            raw.progress()


class Sender:
    """This process's side of one pair of layouts: everything connected and warm."""

    def __init__(self, name: str, pair: Pair, device: str, peer: PeerInfo, raw: Any) -> None:
        self.connector_name = name.partition(" ")[0]
        self.pool = make_pool(pair, pair.source, device)
        self.pool.view(-1).view(torch.uint8).random_(0, 64)
        self.bytes = self.pool.view(-1).view(torch.uint8)
        self.copy = self.bytes.clone()
        self.blocks: RawNixl | None = None
        if name == "nixl":
            nixl = RawNixl(self.pool, "raw-sender")
            nixl.connect("raw-receiver", *raw)
            self.raw: RawNixl | RawStream = nixl
            if pair.kv_map.alike:
                count = pair.num_blocks(pair.source)
                nixl.prepare_blocks(pair.source.block_bytes, count, count)
                self.blocks = nixl
        else:
            self.raw = RawStream(self.pool, raw)
        self.connector = _connector(name, self.pool, pair.source, "sender")
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
            notice = Notice("benchmark", 1, 0, len(remote))
            self.connector.push(self._peer, local, remote, notice, finish)
        for _ in lists:
            done.acquire()
        if errors:
            raise errors[0]

    def write_raw(self, offsets: list[int], num_bytes: int) -> None:
        for offset in offsets:
            self.raw.write(offset, num_bytes)

    def write_blocks(self, lists: BlockLists) -> None:
        assert self.blocks is not None
        for local, remote in lists:
            self.blocks.write_blocks(local, remote)

    def copy_memory(self, offsets: list[int], num_bytes: int) -> None:
        for offset in offsets:
            end = offset + num_bytes
            self.copy[offset:end].copy_(self.bytes[offset:end])
        if self.copy.is_cuda:
            torch.cuda.synchronize()

    def close(self) -> None:
        self.connector.close()
        self.raw.close()


def measure(sender: Sender, case: Case, repeats: int) -> dict[str, Any]:
    """One row: the sides in turns, in random order."""
    rng = random.Random(case.num_bytes)
    total_bytes = case.num_bytes * case.num_pushes
    seconds: dict[str, list[float]] = {}
    room = case.pair.pool_bytes - case.num_bytes
    for repeat in range(WARM_UPS + repeats):
        first = repeat * total_bytes
        offsets = [(first + i * case.num_bytes) % (room + 1) for i in range(case.num_pushes)]
        lists = case.block_lists(first // case.pair.source.block_bytes, rng)
        sides: dict[str, Callable[[], None]] = {
            "ours": partial(sender.push, lists),
            "raw": partial(sender.write_raw, offsets, case.num_bytes),
            "memcpy": partial(sender.copy_memory, offsets, case.num_bytes),
        }
        if sender.blocks is not None:
            sides["raw_blocks"] = partial(sender.write_blocks, lists)
        for name in rng.sample(list(sides), len(sides)):
            began_s = time.perf_counter()
            sides[name]()
            if repeat >= WARM_UPS:
                seconds.setdefault(name, []).append(time.perf_counter() - began_s)
    return row(sender.connector_name, case, seconds)


def row(connector: str, case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Bytes a second of each side, and how long ours takes."""
    total_bytes = case.num_bytes * case.num_pushes
    rates = {
        name: _spread([total_bytes / s / 1e9 for s in found]) for name, found in seconds.items()
    }
    medians = {name: spread["p50"] for name, spread in rates.items()}
    found: dict[str, Any] = {
        "connector": connector,
        "measure": case.describe(),
        **medians,
        "unit": "GB/s",
        "ratio": round(medians["ours"] / medians["raw"], 3),
        "latency_us": _spread([s * 1e6 for s in seconds["ours"]]),
        "raw_latency_us": _spread([s * 1e6 for s in seconds["raw"]]),
        "bytes": case.num_bytes,
        "blocks": case.num_remote,
        "pushes": case.num_pushes,
        "spread": rates,
    }
    if "raw_blocks" in medians:
        found["ratio_blocks"] = round(medians["ours"] / medians["raw_blocks"], 3)
    return found


def _spread(samples: list[float]) -> dict[str, float]:
    """`{p20, p50, p80}`, the nearest sample each, to 4 digits."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {f"p{p}": float(f"{ordered[round(last * p / 100)]:.4g}") for p in (20, 50, 80)}
