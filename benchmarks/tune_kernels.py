"""Finds the kernels' launch configurations on this GPU and writes them beside the kernels.

    PYTHONPATH=src:. python -m benchmarks.tune_kernels [--only linear,decode,extend,lora]

Candidates are compiled side by side, timed on inputs that rotate through the cache, and the fastest
go to kernels/<operator>/configs/<device>.json, which serving reads. Nothing is tuned while serving.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from baton.kernels import launch_config
from baton.kernels.fused_linear.launch import (
    LinearConfig,
    Problem,
    config_name,
    fused_linear_triton,
)
from baton.kernels.paged_attention.launch import AttentionConfigs, DecodeConfig, ExtendConfig
from benchmarks.attention_cases import Inputs, Shape
from benchmarks.gpu_timing import graph_us
from benchmarks.tune_lora import tune_lora

KERNELS = Path(launch_config.__file__).parent

# features, width, normed, swiglu: the products of the 8B and the 0.6B model. One that is neither
# adds to the residual stream.
PRODUCTS = (
    (6144, 4096, True, False),
    (4096, 4096, False, False),
    (28672, 4096, True, True),
    (4096, 14336, False, False),
    (128256, 4096, True, False),
    (4096, 1024, True, False),
    (1024, 2048, False, False),
    (6144, 1024, True, True),
    (1024, 3072, False, False),
    (151936, 1024, True, False),
)
ONE = tuple(
    LinearConfig(block_n=n, num_warps=warps, programs=programs, num_stages=1)
    for n, warps, programs in (
        (1, 4, 0),
        (1, 4, 1056),
        (1, 8, 528),
        (1, 8, 0),
        (1, 16, 264),
        (2, 4, 528),
        (2, 8, 264),
        (2, 8, 528),
        (2, 16, 264),
        (4, 8, 264),
        (4, 4, 528),
        (4, 8, 396),
        (2, 4, 1056),
    )
)
FEW = tuple(
    LinearConfig(
        block_n=n, block_k=k, num_warps=warps, num_stages=stages, ahead=ahead, splits=splits
    )
    for ahead, splits in ((1, 1), (8, 1), (8, 2), (8, 4), (4, 8))
    for n, k, warps, stages in (
        (16, 256, 4, 4),
        (32, 128, 4, 5),
        (64, 64, 4, 6),
        (64, 128, 4, 4),
    )
)
DECODE = tuple(
    DecodeConfig(
        block_n=n,
        num_warps=warps,
        num_stages=stages,
        target_programs=programs,
        combine_splits=splits,
    )
    for splits in (4, 8, 16)
    for n, warps, stages, programs in (
        (32, 2, 6, 264),
        (32, 1, 6, 264),
        (64, 2, 3, 264),
        (64, 2, 3, 528),
        (64, 2, 4, 528),
        (64, 2, 3, 1056),
        (128, 4, 2, 264),
        (128, 4, 2, 528),
    )
)
EXTEND = tuple(
    ExtendConfig(block_m=m, block_n=n, num_warps=warps, num_stages=stages)
    for m, n, warps, stages in (
        (64, 64, 4, 3),
        (128, 64, 4, 3),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
        (128, 128, 8, 3),
        (64, 128, 4, 2),
    )
)
DECODE_SHAPES = (
    Shape(rows=1, context_len=1024),
    Shape(rows=8, context_len=1024),
    Shape(rows=8, context_len=8192),
    Shape(rows=64, context_len=1024),
    Shape(rows=256, context_len=1024),
)
EXTEND_SHAPES = (Shape(rows=1, context_len=8192, query_len=8192),)


def together(calls: Iterable[Callable[[], object]]) -> None:
    """Runs every call once, side by side, which compiles it."""

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except OutOfResources as error:
            print("left out:", error)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(attempt, calls))
    torch.cuda.synchronize()


def timed(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds; infinity for what asks for more than the GPU has."""
    try:
        return graph_us(calls, repeats=7)
    except OutOfResources:
        return float("inf")


def problems(
    num_tokens: int, features: int, width: int, normed: bool, swiglu: bool
) -> list[Problem]:
    """So many with weights of their own that they don't stay in the cache between calls."""
    copies = max(2, min(16, (160 << 20) // (features * width * 2)))
    x = torch.randn(num_tokens, width, device="cuda").bfloat16()
    norm = torch.ones(width, device="cuda").bfloat16() if normed else None
    return [
        Problem(
            x=x,
            weight=torch.empty(features, width, device="cuda", dtype=torch.bfloat16).normal_(),
            bias=None,
            swiglu=swiglu,
            norm_weight=norm,
            adds=not normed,
            eps=1e-5,
            counts=torch.zeros(features // 16, dtype=torch.int32, device="cuda"),
        )
        for _ in range(copies)
    ]


def tune_linear() -> dict[str, dict[str, Any]]:
    """By bucket of tokens and shape: the fastest of ours, or the library."""
    found: dict[str, dict[str, Any]] = {}
    for num_tokens in (1, 16, 32, 64):
        tiles = ONE if num_tokens == 1 else FEW
        configs = [replace(c, fuse_norm=fused) for c in tiles for fused in (True, False)]
        configs.append(LinearConfig(library=True))
        for features, width, normed, swiglu in PRODUCTS:
            made = problems(num_tokens, features, width, normed, swiglu)
            usable = [
                c
                for c in configs
                if (normed or c.fuse_norm) and (c.splits == 1 or not normed or not c.fuse_norm)
            ]
            sums = (
                torch.zeros(num_tokens, features, device="cuda").bfloat16() if not normed else None
            )
            runs = {
                c: [partial(fused_linear_triton, p, sums, config=c) for p in made] for c in usable
            }
            together([calls[0] for calls in runs.values()])
            times = {config: timed(calls) for config, calls in runs.items()}
            best = min(times, key=times.__getitem__)
            name = config_name(num_tokens, features, width)
            found[name] = fields(best)
            weight_bytes = features * width * 2
            library = times[LinearConfig(library=True)]
            print(
                f"{name}: {times[best]:.1f} us, {weight_bytes / times[best] / 1e6:.2f} TB/s;"
                f" library {library:.1f} us; {found[name]}",
                flush=True,
            )
            del made, runs, sums
            torch.cuda.empty_cache()
    return found


def tune_attention(kind: str, *, fp8: bool) -> dict[str, dict[str, Any]]:
    """The configuration whose slowdown against each shape's best is least in the mean."""
    decodes = kind == "decode"
    candidates = DECODE if decodes else EXTEND
    times: dict[Any, list[float]] = {config: [] for config in candidates}
    for shape in DECODE_SHAPES if decodes else EXTEND_SHAPES:
        inputs = Inputs(replace(shape, fp8=fp8))
        made = {
            config: inputs.calls(
                AttentionConfigs(decode=config)
                if decodes
                else AttentionConfigs(extend=config, hopper=False)
            )
            for config in candidates
        }
        together([calls[0] for calls in made.values()])
        for config, calls in made.items():
            times[config].append(timed(calls))
        del inputs, made
        torch.cuda.empty_cache()
    least = [min(values) for values in zip(*times.values(), strict=True)]

    def slowdown(config: Any) -> float:
        return sum(t / low for t, low in zip(times[config], least, strict=True))

    best = min(candidates, key=slowdown)
    for config in sorted(candidates, key=slowdown):
        print(kind, "fp8" if fp8 else "", [round(t, 1) for t in times[config]], config, flush=True)
    return {f"{kind}_d128" + ("_fp8" if fp8 else ""): asdict(best)}


def fields(config: LinearConfig) -> dict[str, Any]:
    return {"library": True} if config.library else asdict(config)


def save(operator: str, found: dict[str, dict[str, Any]]) -> None:
    name = torch.cuda.get_device_name().replace(" ", "_")
    path = KERNELS / operator / "configs" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    lines = [
        f"  {json.dumps(kernel)}: {json.dumps(values)}"
        for kernel, values in sorted({**known, **found}.items())
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print("wrote", path, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="linear,decode,extend,decode_fp8,extend_fp8")
    args = parser.parse_args()
    for part in args.only.split(","):
        started_s = time.perf_counter()
        if part == "linear":
            save("fused_linear", tune_linear())
        elif part == "lora":
            save("lora", tune_lora(together))
        else:
            kind, _, suffix = part.partition("_")
            save("paged_attention", tune_attention(kind, fp8=suffix == "fp8"))
        print(f"{part}: {time.perf_counter() - started_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
