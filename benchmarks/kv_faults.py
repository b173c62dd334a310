"""Random fault schedules over two real workers: no wrong token, no wrong block, no lost block.

    python -m benchmarks.kv_faults [--schedules 1000] [--connector local] [--output FILE]

A schedule is one to three requests, some of them aborted, half of them with a prefix that the
prefill worker pulls from the decode worker, under one to three kinds of faults (lost,
repeated and late notices; the wire lost before, during or after a write; writes that are refused,
slow or never end; connections that are refused or never stand). After each, every answer must be
the token sequence of an undisturbed engine, every received block must have had the checksum of the
block that was sent, and every block of both pools must be free again. The first violation ends the
run with its seed. Rows of other connectors stay in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
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
            "faults": dict(sorted(faulty.faults.happened.items())),
            "first_good_transfer_s": percentiles(healed_s),
            "seconds": round(time.monotonic() - began_s, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Random fault schedules over two workers.")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--connector", action="append", choices=["local", "nixl", "nccl"])
    parser.add_argument("--output", default="benchmarks/results/kv_faults.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    rows = [
        asyncio.run(run(connector, arguments.schedules, arguments.first_seed))
        for connector in arguments.connector or ["local"]
    ]
    for row in rows:
        print(row)
    merge_results(arguments.output, rows, {}, key=("connector",))


if __name__ == "__main__":
    main()
