"""Routing at fleet size: 256 workers, 5 million blocks, prompts of 8k tokens.

Times both the prefix index alone, beside Dynamo's radix tree where its package is at hand, and
whole decisions of the `cost` policy, with the two workers that change between decisions put in
place, and what pricing a shortlist of the workers loses.

```
pip install --target /tmp/dynamo --no-deps ai-dynamo-runtime==1.6.1
PYTHONPATH=/tmp/dynamo python -m benchmarks.router --json benchmarks/results/router.json
```
Every figure is given twice: by the clock on the wall, and by the CPU time of the thread, which
other work on the machine disturbs less. `quietest` is the best of `--rounds` rounds.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from baton.protos.hashing import short_hash
from baton.protos.types import KvEvents, Member, Role, WorkerLoad
from baton.router.config import RouterConfig
from baton.router.decision import RouteRequest
from baton.router.plan import plan
from baton.router.prefix_index import PrefixIndex
from baton.router.view import ClusterView, Columns, WorkerView
from benchmarks.results_file import write_results

BLOCK_SIZE: Final = 16
PROMPT_BLOCKS: Final = 512
# Prompts that many have in common: every worker holds them.
NUM_SHARED: Final = 64


@dataclass(frozen=True)
class Chain:
    """One prompt's blocks as its worker reports them."""

    worker: int
    hashes: list[bytes]


def chains(num_blocks: int, num_workers: int, rng: random.Random) -> Iterator[Chain]:
    """About so many distinct blocks: prompts that share a beginning, of 100 to 450 blocks more."""
    shared = [rng.randbytes(16) for _ in range(NUM_SHARED)]
    made = 0
    while made < num_blocks:
        own = [rng.randbytes(16) for _ in range(rng.choice((100, 250, 448)))]
        made += len(own)
        beginning = shared[: rng.choice((0, 16, NUM_SHARED))]
        yield Chain(rng.randrange(num_workers), beginning + own)


def prompts(known: Sequence[Chain], count: int, rng: random.Random) -> list[list[bytes]]:
    """Prompts of 512 blocks that go on where a known one ends."""
    found = []
    for _ in range(count):
        start = rng.choice(known).hashes
        start = start[: rng.randrange(1, len(start) + 1)]
        found.append([*start, *(rng.randbytes(16) for _ in range(PROMPT_BLOCKS - len(start)))])
    return found


@dataclass(frozen=True)
class Timed:
    """Seconds of each call, by both clocks, one list a round."""

    wall_s: list[list[float]]
    cpu_s: list[list[float]]

    def row(self) -> dict[str, Any]:
        best = min(range(len(self.wall_s)), key=lambda i: sum(self.wall_s[i]))
        return {
            "wall_us": _microseconds([s for each in self.wall_s for s in each]),
            "cpu_us": _microseconds([s for each in self.cpu_s for s in each]),
            "quietest_wall_us": _microseconds(self.wall_s[best]),
            "quietest_cpu_us": _microseconds(self.cpu_s[best]),
            "per_s_cpu": round(sum(map(len, self.cpu_s)) / max(sum(map(sum, self.cpu_s)), 1e-9)),
        }


def timed(call: Callable[[int], object], count: int, rounds: int) -> Timed:
    """Every call by itself; the cyclic collector runs between rounds only."""
    found = Timed([], [])
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        wall, cpu = [], []
        for number in range(count):
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            call(number)
            cpu.append(time.thread_time() - cpu_s)
            wall.append(time.perf_counter() - wall_s)
        gc.enable()
        found.wall_s.append(wall)
        found.cpu_s.append(cpu)
    return found


def bench_baton(
    stored: Sequence[Chain], asked: list[list[bytes]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    index = PrefixIndex(max_blocks_per_worker=1 << 22)
    before, started_s = _resident_bytes(), time.thread_time()
    for chain in stored:
        index.apply(_name(chain.worker), KvEvents(stored=tuple(chain.hashes)))
    store_s = time.thread_time() - started_s
    statistics = index.statistics()
    figures = {
        "num_blocks": statistics.num_blocks,
        "num_entries": statistics.num_entries,
        "bytes_per_block": round((_resident_bytes() - before) / statistics.num_blocks, 1),
        "store_us_per_block": round(1e6 * store_s / statistics.num_entries, 3),
    }
    look_ups = timed(lambda i: index.hits(asked[i % len(asked)]), args.count, args.rounds)
    decisions = timed(_decider(index, asked, args.workers), args.count, args.rounds)
    return [
        {"what": "prefix look-up", "system": "baton", **figures, **look_ups.row()},
        {"what": "decision", "system": "baton", **figures, **decisions.row()},
        {"what": "shortlist", "system": "baton", **shortlist_loss(index, asked, args.workers)},
    ]


def shortlist_loss(
    index: PrefixIndex, asked: list[list[bytes]], num_workers: int
) -> dict[str, Any]:
    """How much more than the cheapest option of all workers the cheapest of the shortlist costs."""
    few, whole = _view(num_workers), _view(num_workers)
    for pool in whole.pools():
        # Without an order every worker is priced.
        pool.orders = []
    config, lost = RouterConfig(), []
    for number, prompt in enumerate(asked):
        costs = []
        for view in (few, whole):
            chosen = plan(view, index, _request(number, prompt), config, random.Random(number))
            costs.append(min(option.cost_s for option in chosen.candidates))
        lost.append(max(0.0, costs[0] / costs[1] - 1))
    return {
        "num_decisions": len(lost),
        "share_exact": round(sum(each < 1e-6 for each in lost) / len(lost), 4),
        "mean_loss": round(float(np.mean(lost)), 5),
        "p99_loss": round(float(np.percentile(lost, 99)), 5),
    }


def bench_dynamo(
    stored: Sequence[Chain], asked: list[list[bytes]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The radix tree that Dynamo's KV router keeps, through its Python bindings."""
    try:
        from dynamo._core import RadixTree  # type: ignore[import-not-found]
    except ImportError as error:
        return [{"what": "prefix look-up", "system": "ai-dynamo-runtime", "not_run": str(error)}]
    tree = RadixTree()
    before, store_s = _resident_bytes(), 0.0
    for number, chain in enumerate(stored):
        event = _dynamo_event(number, [short_hash(each) >> 1 for each in chain.hashes])
        started_s = time.perf_counter()
        tree.apply_event(chain.worker, event)
        store_s += time.perf_counter() - started_s
    sequences = [[short_hash(each) >> 1 for each in prompt] for prompt in asked]
    # It answers from a thread of its own: the first answer waits for what was stored.
    tree.find_matches(sequences[0])
    num_entries = sum(len(chain.hashes) for chain in stored)
    num_blocks = len({each for chain in stored for each in chain.hashes})
    resident = _resident_bytes() - before
    look_ups = timed(
        lambda i: tree.find_matches(sequences[i % len(asked)]).scores, args.count, args.rounds
    )
    return [
        {
            "what": "prefix look-up",
            "system": "ai-dynamo-runtime",
            "version": importlib.metadata.version("ai-dynamo-runtime"),
            "num_blocks": num_blocks,
            "num_entries": num_entries,
            "bytes_per_block": round(resident / num_blocks, 1),
            "store_us_per_block": round(1e6 * store_s / num_entries, 3),
            "cpu_note": "works on a thread of its own: its CPU time is not counted",
            **look_ups.row(),
        }
    ]


def _decider(
    index: PrefixIndex, asked: list[list[bytes]], num_workers: int
) -> Callable[[int], object]:
    rng = random.Random(1)
    view = _view(num_workers)
    pools, config = view.pools(), RouterConfig()

    def decide(number: int) -> object:
        request = _request(number, asked[number % len(asked)])
        chosen = plan(view, index, request, config, rng)
        # What a gateway changes before the next one: who was chosen has more to do.
        for pool in pools:
            pool.replace(pool.workers[number % len(pool)])
        return chosen

    return decide


def _view(num_workers: int) -> ClusterView:
    rng = random.Random(1)
    workers = [_worker(number, rng) for number in range(num_workers)]
    pools = (
        Columns(worker for worker in workers if worker.member.role is Role.DECODE),
        Columns(worker for worker in workers if worker.member.role is Role.PREFILL),
    )
    return ClusterView(pools[0].workers, pools[1].workers, columns=pools)


def _request(number: int, prompt: list[bytes]) -> RouteRequest:
    return RouteRequest(
        request_id="r",
        num_prompt_tokens=PROMPT_BLOCKS * BLOCK_SIZE,
        block_hashes=prompt,
        max_tokens=256,
        sequence=number,
    )


def _worker(number: int, rng: random.Random) -> WorkerView:
    """Half of them compute prompts; some have a queue."""
    role = Role.DECODE if number % 2 else Role.PREFILL
    member = Member(
        worker_id=_name(number), incarnation="1", role=role, address=f"h{number // 8}:1", model="m"
    )
    load = WorkerLoad(
        num_running=rng.randrange(60),
        queued_prefill_tokens=rng.choice((0, rng.randrange(20_000))),
        running_kv_tokens=rng.randrange(100_000),
        total_blocks=30_000,
        free_blocks=20_000,
    )
    return WorkerView(member, load, 0.1)


def _name(number: int) -> str:
    return f"w{number}"


def _dynamo_event(number: int, keys: list[int]) -> bytes:
    blocks = [{"block_hash": key, "tokens_hash": key} for key in keys]
    stored = {"parent_hash": None, "blocks": blocks}
    return json.dumps({"event_id": number, "data": {"stored": stored}}).encode()


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _microseconds(seconds: Sequence[float]) -> dict[str, float]:
    return {
        f"p{percent}": round(1e6 * float(np.percentile(seconds, percent)), 1)
        for percent in (50, 99)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dynamo-blocks", type=int, default=500_000)
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    rows = []
    for num_blocks, systems in (
        (args.dynamo_blocks, (bench_baton, bench_dynamo)),
        (args.blocks, (bench_baton,)),
    ):
        rng = random.Random(0)
        stored = list(chains(num_blocks, args.workers, rng))
        asked = prompts(stored, args.count, rng)
        for system in systems:
            rows += system(stored, asked, args)
            print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        print(json.dumps(row))
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        settings |= {"load_average": os.getloadavg()}
        write_results(args.json, rows, settings)


if __name__ == "__main__":
    main()
