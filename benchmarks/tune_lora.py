"""Finds the adapters' launch configurations on this GPU: `tune_kernels --only lora`.

Judged by what shrinking and expanding add to a layer's four products of the 8B model, at 64 tokens
with 1, 8 and 64 adapters of rank 16: the mean of that over what the adapters' bytes alone take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from baton.engine.model_info import read_model_spec
from baton.kernels.fused_linear.launch import LinearConfig, is_own_kernel
from baton.kernels.lora.launch import ExpandConfig, LoraConfigs, ShrinkConfig
from benchmarks.lora_kernels import Case, shapes_of

TOKENS, RANK = 64, 16
SHRINKS = tuple(
    ShrinkConfig(
        block_k=k,
        part=part,
        max_splits=splits,
        programs=programs,
        num_warps=warps,
        num_stages=stages,
    )
    for k, part, splits, warps, stages in (
        (128, 512, 16, 4, 3),
        (256, 512, 16, 4, 2),
        (256, 512, 16, 8, 2),
        (256, 256, 16, 4, 2),
        (512, 512, 16, 4, 2),
        (256, 1024, 16, 4, 3),
    )
    for programs in (512, 2048)
)
EXPANDS = tuple(
    ExpandConfig(block_n=n, num_warps=warps, programs=programs, num_stages=1)
    for n, warps in ((64, 2), (64, 4), (128, 4), (128, 8), (256, 4), (256, 8))
    for programs in (528, 1056, 4224)
)
PRODUCTS = tuple(
    LinearConfig(block_n=n, block_k=128, num_warps=4, num_stages=stages, ahead=4, splits=splits)
    for n, stages, splits in ((64, 4, 1), (64, 4, 4), (32, 5, 1), (32, 5, 2))
)


def tune_lora(
    together: Callable[[Iterable[Callable[[], object]]], None], counts: Sequence[int] = (1, 8, 64)
) -> dict[str, dict[str, Any]]:
    """First the expanding's, then the shrinking's with the best of that.

    together: runs calls side by side, so that what they need is compiled.
    """
    spec = read_model_spec(str(Path(__file__).parent / "models" / "llama8b"))
    cases = [
        (f"{name} {count}", Case(heights, width, TOKENS, count, RANK))
        for name, (heights, width) in shapes_of(spec).items()
        for count in counts
    ]
    bases = {name: case.base_us() for name, case in cases}
    print("base", {name: round(us, 1) for name, us in bases.items()}, flush=True)

    def added(configs: LoraConfigs) -> dict[str, float]:
        return {name: case.lora_us(configs) - bases[name] for name, case in cases}

    def score(configs: LoraConfigs) -> float:
        found = added(configs)
        print(
            *(round(us, 1) for us in found.values()),
            list(asdict(configs.shrink).values()),
            list(asdict(configs.expand).values()),
            flush=True,
        )
        return sum(
            us / (case.floor_us + 2) for us, (_, case) in zip(found.values(), cases, strict=True)
        )

    best = LoraConfigs(shrink=SHRINKS[0], expand=EXPANDS[6])
    tried = [replace(best, expand=one) for one in EXPANDS]
    tried += [replace(best, shrink=one) for one in SHRINKS]
    tried += [replace(best, product=one) for one in PRODUCTS]
    few = [case for name, case in cases if name.endswith(f" {counts[0]}")]
    together(partial(case.product, 0, one) for one in tried for case in few)
    best = min((replace(best, expand=one) for one in EXPANDS), key=score)
    best = min((replace(best, shrink=one) for one in SHRINKS), key=score)
    score(replace(best, shrink=replace(best.shrink, beside=False)))
    for name, case in cases:
        if not is_own_kernel(TOKENS, case.weights[0]):
            times = [case.lora_us(replace(best, product=one)) - bases[name] for one in PRODUCTS]
            print(name, "by own products", [round(us, 1) for us in times], flush=True)
    return {"shrink_few": asdict(best.shrink), "expand_few": asdict(best.expand)}
