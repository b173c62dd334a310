"""Finds the adapters' launch configurations on this GPU: `tune_kernels --only lora`.

Judged by what shrinking and expanding add to a layer's four products of the 8B model, at 64 tokens
with 1, 8 and 64 adapters of rank 16: the mean of that over what the adapters' bytes alone take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from triton.runtime.errors import OutOfResources

from baton.engine.model_info import read_model_spec
from baton.kernels.fused_linear.launch import LinearConfig, config_name
from baton.kernels.lora.launch import ExpandConfig, LoraConfigs, ShrinkConfig
from benchmarks.lora_kernels import Case, shapes_of

TOKENS, RANK = 64, 16
SHRINKS = tuple(
    ShrinkConfig(
        block_k=k,
        part=part,
        max_splits=16,
        programs=2048,
        num_warps=warps,
        num_stages=stages,
    )
    for k, part, warps, stages in (
        (256, 1024, 4, 3),
        (256, 2048, 4, 3),
        (128, 2048, 4, 5),
        (256, 4096, 4, 4),
        (128, 4096, 4, 6),
        (256, 4096, 8, 4),
        (512, 2048, 8, 3),
    )
)
EXPANDS = tuple(
    ExpandConfig(block_n=n, num_warps=warps, programs=programs, num_stages=1)
    for n, warps in ((64, 2), (128, 4), (256, 8))
    for programs in (1056, 4224)
)
PRODUCTS = tuple(
    LinearConfig(
        block_n=n,
        block_k=k,
        num_warps=4,
        num_stages=stages,
        ahead=1,
        splits=splits,
        fuse_norm=False,
    )
    for n, k, stages, splits in (
        (64, 128, 4, 1),
        (64, 128, 3, 1),
        (64, 64, 6, 1),
        (32, 128, 5, 1),
        (64, 128, 4, 2),
        (64, 128, 4, 4),
        (32, 128, 5, 2),
        (32, 128, 4, 4),
    )
)


def tune_lora(
    together: Callable[[Iterable[Callable[[], object]]], None], counts: Sequence[int] = (1, 8, 64)
) -> dict[str, dict[str, Any]]:
    """First the shrinking's, then each product's, then the expanding's where the vendor multiplies.

    together: runs calls side by side, so that what they need is compiled.
    """
    spec = read_model_spec(str(Path(__file__).parent / "models" / "llama8b"))
    cases = [
        Case(heights, width, TOKENS, count, RANK)
        for heights, width in shapes_of(spec).values()
        for count in counts
    ]
    together(
        partial(case.product, 0, replace(case.configs(), **change))
        for case in cases[:: len(counts)] + cases[1 :: len(counts)]
        for change in _changes()
    )
    bases = [case.base_us() for case in cases]
    print("base", [round(us, 1) for us in bases], flush=True)
    known = [case.configs() for case in cases]

    def score(change: dict[str, Any], which: Sequence[int]) -> float:
        """Mean of what is added over its floor and two microseconds."""
        added = [us(cases[i], replace(known[i], **change)) - bases[i] for i in which]
        (config,) = change.values()
        print(*(round(us, 1) for us in added), list(asdict(config).values()), flush=True)
        return sum(us / (cases[i].floor_us + 2) for us, i in zip(added, which, strict=True))

    everyone = range(len(cases))
    shrink = min(SHRINKS, key=lambda one: score({"shrink": one}, everyone))
    known = [replace(configs, shrink=shrink) for configs in known]
    found = {"shrink_few": asdict(shrink)}
    for i in everyone:
        if cases[i].batch.slots.shape[0]:
            products = [one for one in (known[i].product, *PRODUCTS) if not one.library]
            best = min(products, key=lambda one, i=i: score({"product": one}, [i]))
            found[config_name(TOKENS, *cases[i].weights[0].shape)] = asdict(best)
    many = [i for i in everyone if not cases[i].batch.slots.shape[0]]
    expand = min(EXPANDS, key=lambda one: score({"expand": one}, many))
    known = [replace(configs, expand=expand) for configs in known]
    for product in (LinearConfig(library=True), PRODUCTS[0], PRODUCTS[4]):
        print("many by another product:", end=" ")
        score({"product": product}, many)
    return found | {"expand_few": asdict(expand)}


def us(case: Case, configs: LoraConfigs) -> float:
    """Of a product with adapters; infinity where it asks for more than there is."""
    try:
        return case.lora_us(configs)
    except OutOfResources:
        return math.inf


def _changes() -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = [{"shrink": one} for one in SHRINKS]
    changes += [{"product": one} for one in PRODUCTS]
    return changes + [{"expand": one} for one in EXPANDS]
