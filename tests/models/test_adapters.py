"""The adapters that ship: served together, each changes the answers as it was trained to."""

from __future__ import annotations

import random
import time
from contextlib import closing
from pathlib import Path

import torch
from models.train.adapters import BASE, RECIPES, samples
from models.train.batching import encode
from tokenizers import Tokenizer

from baton.engine.adapters.folder import describe_adapter
from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.model_info import read_model_spec
from baton.protos.types import GenerateRequest, SamplingParams

ROOT = Path(__file__).parents[2]
PROMPTS = 4


def test_shipped_adapters_answer_as_they_were_trained_to() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(ROOT / BASE / "tokenizer.json"))
    model_dir = str(ROOT / BASE)
    spec, expected = read_model_spec(model_dir), {}
    with closing(Engine(EngineConfig(model_dir=model_dir, device="cpu", max_loras=2))) as engine:
        for name, recipe in RECIPES.items():
            folder = str(ROOT / "models" / "adapters" / name)
            ref = describe_adapter(name, folder, spec, engine.config.max_lora_rank)
            engine.adapters.load(ref)
            asked = samples(recipe, random.Random(3), PROMPTS, held_out=True)
            for i, document in enumerate(encode(tokenizer, asked, [False] * PROMPTS)):
                prompt, reply = document.num_prompt_tokens, document.tokens
                expected[f"{name} {i}"] = reply[prompt:]
                sampling = SamplingParams(temperature=0.0, max_tokens=len(reply))
                engine.add(
                    GenerateRequest(
                        request_id=f"{name} {i}",
                        prompt_token_ids=reply[:prompt],
                        sampling=sampling,
                        adapter_id=ref.adapter_id,
                    )
                )
        made: dict[str, list[int]] = {name: [] for name in expected}
        left, end_s = len(expected), time.monotonic() + 100
        while left and time.monotonic() < end_s:
            for output in engine.step().outputs if engine.has_work() else ():
                made[output.request_id] += output.token_ids
                left -= output.finish_reason is not None
    for name in RECIPES:
        right = [made[f"{name} {i}"] == expected[f"{name} {i}"] for i in range(PROMPTS)]
        assert sum(right) >= PROMPTS - 1, name
