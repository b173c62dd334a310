"""Writes what `baton bench kv` measures into benchmarks/results, with machine and commit.

python -m benchmarks.kv_transfer [--repeats 15] [--device cuda] [--connector nixl] [--output FILE]

Rows of other connectors stay in the file.
"""

from __future__ import annotations

import argparse

from baton.cluster.bench.kv import WARM_UPS, run
from baton.cluster.bench.kv_cases import POOL_BYTES
from baton.cluster.bench.kv_table import line
from benchmarks.results_file import merge_results


def main() -> None:
    parser = argparse.ArgumentParser(description="KV pushes between two processes.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--connector", action="append", choices=["nixl", "nccl", "lmcache"])
    parser.add_argument("--output", help="default: benchmarks/results/kv_DEVICE.json")
    arguments = parser.parse_args()
    settings = {
        "device": arguments.device,
        "repeats_of_64_mib": arguments.repeats,
        "warm_ups": WARM_UPS,
        "pool_bytes": POOL_BYTES,
    }
    device = arguments.device.partition(":")[0]
    output = arguments.output or f"benchmarks/results/kv_{device}.json"
    for connector in arguments.connector or ["nixl", "nccl"]:
        rows = []
        for found in run(connector, arguments.device, arguments.repeats):
            print(line(found), flush=True)
            rows.append(found)
        merge_results(output, rows, settings, key=("connector", "measure"))


if __name__ == "__main__":
    main()
