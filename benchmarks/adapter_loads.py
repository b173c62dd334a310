"""What loading adapters costs the others: gaps between tokens of base requests while adapters come.

    python benchmarks/adapter_loads.py [--streams 4] [--seconds 20] [--rounds 3] [--churn]

A cluster of one prefill and one decode worker with room for two adapters on the device streams
`--streams` base requests. Beside them, one short request after the other names an adapter: `warm`,
always the same; `cold`, the next of eight, so that each has to be copied to the device first;
`loading`, as `warm` while another client loads a ninth adapter and unloads it again, a change every
second; with `--churn` there is also `churn`, the same without pause, in which the control plane and
the workers share the cores of the machine all the time. Rounds alternate the kinds, so that a noisy
machine hits all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "adapter_loads.json"
KINDS = ("warm", "cold", "loading")
# Between two changes of the set.
PAUSE_S = {"loading": 1.0, "churn": 0.0}
NUM_ADAPTERS = 8
# Pools large enough for the streams, and two adapters on the device.
CONFIG = "engine: {max_loras: 2, num_blocks: 2048}\n"


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Path]]:
    """A cluster; yields its URL and the folder with the adapters "0" to "8"."""
    from tests.integration.conftest import random_adapter, served

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [random_adapter(folder / "adapters" / str(i), i) for i in range(NUM_ADAPTERS + 1)]
        options = ["--lora-roots", str(folder / "adapters")]
        for path in paths[:NUM_ADAPTERS]:
            options += ["--lora-modules", f"{path.name}={path}"]
        with served(folder, CONFIG, options) as cluster:
            cluster.wait_for(1, 1)
            yield cluster.url, folder / "adapters"


async def stream_gaps(
    http: httpx.AsyncClient, rng: random.Random, gaps: list[float], end_s: float
) -> None:
    """Base requests one after the other; adds the times between their events."""
    while time.perf_counter() < end_s:
        prompt = [rng.randrange(20, 1000) for _ in range(32)]
        body = {"prompt": prompt, "max_tokens": 256, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            last_s = None
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    now_s = time.perf_counter()
                    if last_s is not None and now_s < end_s:
                        gaps.append(now_s - last_s)
                    last_s = now_s


async def adapter_requests(
    http: httpx.AsyncClient, kind: str, rng: random.Random, end_s: float
) -> int:
    """Short requests one after the other; how many there were."""
    names = itertools.cycle(range(NUM_ADAPTERS) if kind == "cold" else [0])
    count = 0
    while time.perf_counter() < end_s:
        prompt = [rng.randrange(20, 1000) for _ in range(32)]
        body = {"model": str(next(names)), "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
        answer = await http.post("/v1/completions", json=body)
        answer.raise_for_status()
        count += 1
        await asyncio.sleep(0.05)
    return count


async def loads(http: httpx.AsyncClient, folder: Path, pause_s: float, end_s: float) -> int:
    """Loads and unloads the ninth adapter; how often."""
    name, count = str(NUM_ADAPTERS), 0
    while time.perf_counter() < end_s:
        body = {"lora_name": name, "lora_path": str(folder / name)}
        (await http.post("/v1/load_lora_adapter", json=body)).raise_for_status()
        await asyncio.sleep(pause_s)
        (await http.post("/v1/unload_lora_adapter", json={"lora_name": name})).raise_for_status()
        await asyncio.sleep(pause_s)
        count += 1
    return count


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as http:
        yield http


async def window(
    url: str, folder: Path, kind: str, args: argparse.Namespace, seed: int
) -> tuple[list[float], int, int]:
    """Gaps in seconds, requests that named an adapter, and loads."""
    gaps: list[float] = []
    rng = random.Random(seed)
    async with client(url) as http:
        end_s = time.perf_counter() + args.seconds
        streams = [stream_gaps(http, rng, gaps, end_s) for _ in range(args.streams)]
        changes = [loads(http, folder, PAUSE_S[kind], end_s)] if kind in PAUSE_S else []
        named, *rest = await asyncio.gather(
            adapter_requests(http, kind, rng, end_s), *changes, *streams
        )
    return gaps, int(named or 0), int(rest[0] or 0) if changes else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--churn", action="store_true")
    args = parser.parse_args()
    kinds = (*KINDS, "churn") if args.churn else KINDS
    found: dict[str, list[tuple[list[float], int, int]]] = {kind: [] for kind in kinds}
    with serving() as (url, folder):
        asyncio.run(window(url, folder, "cold", args, seed=99))
        for seed in range(args.rounds):
            for kind in kinds:
                found[kind].append(asyncio.run(window(url, folder, kind, args, seed)))
    report(args, found)


def report(args: argparse.Namespace, found: dict[str, list[tuple[list[float], int, int]]]) -> None:
    from benchmarks.results_file import percentiles, write_results

    def p99(gaps: list[float]) -> float:
        return 1e3 * statistics.quantiles(gaps, n=100)[-1]

    pooled = {
        kind: [gap for gaps, _, _ in windows for gap in gaps] for kind, windows in found.items()
    }
    rows = [
        {
            "measure": f"ITL of base requests, {kind}",
            "ms": percentiles([1e3 * gap for gap in pooled[kind]]),
            "p99_ms": round(p99(pooled[kind]), 3),
            "p99_ms_by_round": [round(p99(gaps), 3) for gaps, _, _ in windows],
            "p99_over_warm": round(p99(pooled[kind]) / p99(pooled["warm"]), 3),
            "adapter_requests": sum(named for _, named, _ in windows),
            "loads": sum(count for _, _, count in windows),
            "unit": "ms",
        }
        for kind, windows in found.items()
    ]
    write_results(RESULTS, rows, {**vars(args), "aim_p99_over_warm": 1.1})
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
