"""Pushes of whole prompts' KV between two processes on one GPU, against bare NIXL WRITEs.

    python -m benchmarks.kv_pushes [--device cuda] [--mib 64,256,1024] [--output FILE]

What `benchmarks/kv_transfer.py` measures, with more bytes a push: 256 MiB and 1 GiB are prompts of
2,048 and 8,192 tokens of an 8B model. `raw` is a bare WRITE of the very same blocks, `raw_flat` one
of a single run of as many bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

from baton.cluster.bench.kv import prepare, run_pair
from baton.cluster.bench.kv_cases import SHAPES, Case, Pair, alike_pair
from baton.cluster.bench.kv_table import line
from benchmarks.results_file import merge_results

MIB: Final = 1 << 20
# Blocks of 64 KiB, 512 KiB and 2 MiB. Of the small ones a push has at most so many: they are slow.
MOST_BLOCKS: Final = 4096
QUEUED: Final = 8


def cases(pair: Pair, sizes: list[int]) -> Iterator[Case]:
    for num_bytes in sizes:
        if num_bytes // pair.source.block_bytes > MOST_BLOCKS:
            continue
        yield Case(num_bytes, pair, scattered=False)
        yield Case(num_bytes, pair, scattered=True)
        if num_bytes * QUEUED <= pair.pool_bytes:
            yield Case(num_bytes, pair, scattered=False, num_pushes=QUEUED)


def against_blocks(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the WRITE of the same blocks as `raw`."""
    row = {name: value for name, value in row.items() if name != "raw_latency_us"}
    row["raw_flat"], row["raw"] = row["raw"], row.pop("raw_blocks")
    row["ratio_flat"], row["ratio"] = row["ratio"], row.pop("ratio_blocks")
    row["spread"]["raw_flat"] = row["spread"].pop("raw")
    row["spread"]["raw"] = row["spread"].pop("raw_blocks")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mib", default="64,256,1024", help="sizes of pushes")
    parser.add_argument("--pool-mib", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", default="benchmarks/results/kv_h100.json")
    options = parser.parse_args()
    sizes = [int(size) * MIB for size in options.mib.split(",")]
    settings = {"device": options.device, "repeats": options.repeats, "pool_mib": options.pool_mib}
    prepare(options.device)
    for shape in reversed(SHAPES):
        pair = alike_pair(*shape, pool_bytes=options.pool_mib * MIB)
        found = []
        for row in run_pair(
            "nixl", pair, list(cases(pair, sizes)), options.device, options.repeats
        ):
            print(line(row), flush=True)
            found.append(against_blocks(row))
        # After each pair: a run that is cut short leaves what it had.
        merge_results(options.output, found, {"pushes": settings}, key=("connector", "measure"))


if __name__ == "__main__":
    main()
