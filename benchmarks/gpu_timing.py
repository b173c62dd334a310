"""Times of device work: replays of a CUDA graph, so that launches cost nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch


def graph_us(calls: Sequence[Callable[[], object]], *, repeats: int = 10) -> float:
    """Microseconds of one call, median; `calls` go round so that no input stays in the cache."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def copy_bytes_per_s() -> float:
    """Bytes read and written by a device copy of 2 GiB, per second."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_us([lambda: target.copy_(source)]) * 1e6


def matmul_flops_per_s(size: int = 8192) -> float:
    """Operations of a bfloat16 matrix product of random data, per second."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return float(2 * size**3 / graph_us([lambda: a @ b] * 4) * 1e6)
