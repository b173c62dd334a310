"""Adapters of a model on two ranks: each holds its part, and the answers are one rank's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from tests.engine.adapters.peft_folder import ALL_LINEAR, random_tensors, save_adapter
from tests.engine.adapters.test_serving import PROMPT, generate, run, tokens
from tests.engine.driving import runner_config, save_model

from baton.engine.adapters.folder import describe_adapter
from baton.engine.engine import Engine
from baton.engine.model_info import read_model_spec
from baton.protos.errors import AdapterError

EVERYTHING = (*ALL_LINEAR, "embed_tokens", "lm_head")


@pytest.mark.parametrize("heads", [2, 1], ids=["split-kv", "shared-kv"])
def test_two_ranks_answer_as_one(tmp_path: Path, heads: int) -> None:
    base = tmp_path / "base"
    save_model(base, "Llama", num_key_value_heads=heads, vocab_size=129)
    spec = read_model_spec(str(base))
    refs = []
    for i, targets in enumerate([EVERYTHING, ("v_proj", "o_proj"), ("up_proj",)]):
        folder = tmp_path / str(i)
        save_adapter(folder, random_tensors(spec, targets, seed=i), targets=targets)
        refs.append(describe_adapter(str(i), str(folder), spec, 16))
    answers = []
    for size in (1, 2):
        config = runner_config(base, max_loras=2, tensor_parallel_size=size)
        with closing(Engine(config)) as engine:
            for ref in refs:
                engine.adapters.load(ref)
            requests = [
                generate(str(i), PROMPT, ref.adapter_id if ref else "")
                for i, ref in enumerate([*refs, None])
            ]
            answers.append({k: tokens(v) for k, v in run(engine, *requests).items()})
            engine.adapters.unload(refs[0].adapter_id)
            again = run(engine, generate("again", PROMPT, refs[1].adapter_id))["again"]
            assert tokens(again) == answers[-1]["1"]
            engine.adapters.load(refs[0])
            again = run(engine, generate("back", PROMPT, refs[0].adapter_id))["back"]
            assert tokens(again) == answers[-1]["0"]
            (Path(refs[2].path) / "adapter_config.json").write_text("{}")
            engine.adapters.unload(refs[2].adapter_id)
            with pytest.raises(AdapterError):
                engine.adapters.load(refs[2])
            if size == 1:
                targets = ("up_proj",)
                tensors = random_tensors(spec, targets, seed=2)
                save_adapter(Path(refs[2].path), tensors, targets=targets)
    assert answers[0] == answers[1]
    assert len({tuple(t) for t in answers[0].values()}) == 4
