"""Adapters on a GPU, in float32: merged weights' tokens, in graphs and out, taking turns."""

from __future__ import annotations

import pytest
import torch
from tests.engine.adapters.test_serving import (
    PROMPT,
    Saved,
    engine_on,
    generate,
    run,
    saved,
    tokens,
)

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

__all__ = ["saved"]
CUDA = {"device": "cuda", "dtype": "float32"}
NO_GRAPHS = {"graph_max_rows": 0, "graph_max_tokens": 0}


@pytest.mark.parametrize("max_loras", [1, 3])
@pytest.mark.parametrize("changes", [{}, NO_GRAPHS], ids=["graphs", "eager"])
def test_a_mixed_batch_equals_merged_weights(
    saved: Saved, changes: dict[str, object], max_loras: int
) -> None:
    expected = {}
    for name, folder in (("base", saved.base), *saved.merged.items()):
        with engine_on(folder, **CUDA) as engine:
            expected[name] = tokens(run(engine, generate("r", PROMPT))["r"])
    ids = {"base": "", **{name: ref.adapter_id for name, ref in saved.refs.items()}}
    with engine_on(saved.base, max_loras=max_loras, **CUDA, **changes) as engine:
        for ref in saved.refs.values():
            engine.adapters.load(ref)
        crowd = [generate(f"{name} {i}", PROMPT, ids[name]) for i in range(5) for name in ids]
        for name, outputs in run(engine, *crowd).items():
            assert tokens(outputs) == expected[name.partition(" ")[0]], name
