"""KV of a pool in GPU memory that went to page-locked host memory, or to disk, and came back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.driving import VOCAB, save_model
from tests.engine.tiers.test_tiers import MODEL_BLOCK_BYTES, Served

from baton.kvtransfer.tiers.config import TierConfig

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.mark.parametrize("overlap", [False, True])
def test_answers_are_those_of_an_engine_without_tiers(tmp_path: Path, overlap: bool) -> None:
    folder = tmp_path / "model"
    save_model(folder, "Llama", head_dim=32)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, VOCAB, (100,), generator=generator).tolist() for _ in range(6)]
    rounds = [(f"{again}.{number}", prompts[number]) for again in range(3) for number in range(6)]
    # Room for three prompts: a GPU is done with one sooner than the next could be copied away.
    place = {"device": "cuda", "dtype": "float32", "overlap": overlap, "num_blocks": 40}
    plain = Served(folder, TierConfig(), **place)
    expected = {name: plain.answer(name, prompt) for name, prompt in rounds}
    plain.close()
    config = TierConfig(
        cpu_gib=24 * 2 * MODEL_BLOCK_BYTES / (1 << 30), disk_path=str(tmp_path / "kv"), disk_gib=1.0
    )
    served = Served(folder, config, **place)
    assert {name: served.answer(name, prompt) for name, prompt in rounds} == expected
    found = served.close()
    assert found is not None
    assert found.num_host > 0
    assert found.lower[0].num_hits > 0
