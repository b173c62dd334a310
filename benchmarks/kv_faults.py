"""Random fault schedules over two real workers: no wrong token, no wrong block, no lost block.

    python -m benchmarks.kv_faults [--schedules 1000] [--connector local] [--output FILE]

A schedule is one to three requests, some of them aborted, half of them with a prefix that the
prefill worker pulls from the decode worker, under one to three kinds of faults (lost,
repeated and late notices; the wire lost before, during or after a write; writes that are refused,
slow or never end; connections that are refused or never stand; a disk below the pools that fails,
is slow or does half of what it is asked for), and some with a damaged file on that disk. After
each, every answer must be the token sequence of an undisturbed engine, every received block must
have had the checksum of the block that was sent, every block from the disk that of one that was
stored under its hash, and every block of both pools must be free again. The first violation ends
the run with its seed. Rows of other connectors stay in the file; `--go-on` adds to what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from tests.workers.fault_rig import rig

from benchmarks.results_file import merge_results, percentiles


async def run(connector: str, schedules: int, first_seed: int) -> dict[str, Any]:
    healed_s: list[float] = []
    began_s = time.monotonic()
    async with rig(connector, first_seed) as faulty:
        for seed in range(first_seed, first_seed + schedules):
            await faulty.run(seed)
            if seed % 10 == 9:
                healed_s.append(await faulty.good_transfer_s())
            if seed % 100 == 99:
                print(f"{connector}: {seed + 1 - first_seed} schedules", flush=True)
        return {
            "connector": connector,
            "measure": "random fault schedules without a wrong token, wrong block or lost block",
            "ours": schedules,
            "unit": "schedules",
            "requests": faulty.num_requests,
            "aborted": faulty.num_aborted,
            "computed_remotely": faulty.num_remote,
            "blocks_checked": faulty.ledger.num_checked,
            "pulled_tokens": (await faulty.pair.prefill.load()).num_pulled_tokens,
            "from_host_memory": await faulty.num_from_host_memory(),
            "from_disk": faulty.ledger.num_checked_of_disk,
            "damaged_files": faulty.num_damaged,
            "faults": dict(sorted(faulty.faults.happened.items())),
            "first_good_transfer_s_samples": [round(s, 3) for s in healed_s],
            "seconds": round(time.monotonic() - began_s, 1),
        }


def joined(row: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """With the schedules of an earlier run, and what the samples of both come to."""
    row = dict(row)
    for name, value in (before or {}).items():
        if name == "faults":
            kinds = sorted({*value, *row[name]})
            row[name] = {kind: value.get(kind, 0) + row[name].get(kind, 0) for kind in kinds}
        elif isinstance(value, int | float | list):
            row[name] = value + row[name]
    row["seconds"] = round(row["seconds"], 1)
    samples = row["first_good_transfer_s_samples"]
    row["first_good_transfer_s"] = percentiles(samples) | {"max": max(samples, default=0.0)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Random fault schedules over two workers.")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--connector", action="append", choices=["local", "nixl", "nccl"])
    parser.add_argument("--output", default="benchmarks/results/kv_faults.json")
    parser.add_argument("--go-on", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    there = Path(arguments.output)
    before = json.loads(there.read_text())["rows"] if arguments.go_on and there.exists() else []
    known = {row["connector"]: row for row in before}
    for connector in arguments.connector or ["local"]:
        earlier = known.get(connector)
        first_seed = arguments.first_seed + (earlier["ours"] if earlier else 0)
        row = joined(asyncio.run(run(connector, arguments.schedules, first_seed)), earlier)
        print(row)
        merge_results(arguments.output, [row], {}, key=("connector",))


if __name__ == "__main__":
    main()
