"""The attention kernels alone, as parts of what the GPU copies and multiplies.

    export PYTHONPATH=src:.
    python -m benchmarks.attention_kernels --out benchmarks/results/engine_h100.json

Prefill's rows say which part of a large bfloat16 matrix product's rate it reaches, decode's which
part of a device copy's; FP8's how much faster it decodes than bfloat16. `floor` is the aim.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.attention_cases import Inputs, Shape
from benchmarks.gpu_timing import copy_bytes_per_s, graph_us, matmul_flops_per_s
from benchmarks.results_file import merge_results

DECODES = (
    (Shape(rows=64, context_len=1024), 0.88),
    (Shape(rows=64, context_len=4096), 0.95),
    (Shape(rows=256, context_len=1024), 0.95),
    (Shape(rows=8, context_len=8192), 0.88),
    (Shape(rows=1, context_len=1024), None),
)
PREFILLS = (
    (Shape(rows=1, context_len=2048, query_len=2048), None),
    (Shape(rows=1, context_len=8192, query_len=8192), 0.65),
    (Shape(rows=1, context_len=32768, query_len=16384), None),
)
FP8 = (Shape(rows=64, context_len=4096, fp8=True), Shape(rows=8, context_len=32768, fp8=True))


def decode_rate(shape: Shape) -> tuple[float, float]:
    """Microseconds, and bytes of KV per second."""
    us = graph_us(Inputs(shape).calls())
    torch.cuda.empty_cache()
    return us, shape.kv_bytes / us * 1e6


def measure() -> list[dict[str, Any]]:
    copy, matmul = copy_bytes_per_s(), matmul_flops_per_s()
    torch.cuda.empty_cache()
    rows = [
        row("device copy", copy / 1e12, None, "TB/s"),
        row("matrix product 8192", matmul / 1e12, None, "TFLOP/s"),
    ]
    for shape, aim in DECODES:
        us, rate = decode_rate(shape)
        rows.append(row(str(shape), rate / copy, aim, "of copy", us=us, tb_s=rate / 1e12))
    for shape, aim in PREFILLS:
        us = graph_us(Inputs(shape).calls(), repeats=5)
        torch.cuda.empty_cache()
        rate = shape.operations / us * 1e6
        rows.append(row(str(shape), rate / matmul, aim, "of matmul", us=us, tflop_s=rate / 1e12))
    for shape in FP8:
        us, _ = decode_rate(shape)
        plain = Shape(rows=shape.rows, context_len=shape.context_len)
        plain_us, _ = decode_rate(plain)
        rows.append(row(str(shape), plain_us / us, 1.6, "x bfloat16", us=us, bfloat16_us=plain_us))
    return rows


def row(measure: str, ours: float, aim: float | None, unit: str, **more: float) -> dict[str, Any]:
    found = {"model": "attention", "measure": measure, "ours": round(ours, 3), "peer": None}
    found |= {"floor": aim, "unit": unit, **{name: round(v, 2) for name, v in more.items()}}
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    args = parser.parse_args()
    rows = measure()
    if args.out:
        merge_results(args.out, rows, vars(args), key=("model", "measure"))


if __name__ == "__main__":
    main()
