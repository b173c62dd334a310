"""Every architecture against transformers, through the paged runner, with prompts in chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.driving import edit_json, new_driver, save_model

from baton.engine.model_info import read_model_spec
from baton.engine.models.rope import inverse_frequencies
from baton.protos.errors import ModelLoadError
from baton.protos.types import SamplingParams

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
CASES = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "mistral": ("Mistral", {"sliding_window": 20}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}
PROMPT_TOKENS = 45
OUTPUT_TOKENS = 64


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers_over_a_prompt_and_64_greedy_tokens(case: str, tmp_path: Path) -> None:
    name, changes = CASES[case]
    model = save_model(tmp_path, name, **changes)
    prompt = torch.randint(3, 128, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model.generate(
            prompt[None],
            attention_mask=torch.ones(1, PROMPT_TOKENS, dtype=torch.long),
            max_new_tokens=OUTPUT_TOKENS,
            min_new_tokens=OUTPUT_TOKENS,
            eos_token_id=None,
            do_sample=False,
        )[0]
        reference = model(expected[None]).logits[0].log_softmax(-1)

    driver = new_driver(tmp_path)
    sampling = SamplingParams(temperature=0.0, logprobs=128, prompt_logprobs=128)
    driver.add(prompt.tolist(), sampling)
    tokens = driver.generate(OUTPUT_TOKENS, chunk=16)["r"]

    assert tokens == expected[PROMPT_TOKENS:].tolist()
    reports = driver.prompt_logprobs["r"] + driver.logprobs["r"]
    assert len(reports) == PROMPT_TOKENS + OUTPUT_TOKENS - 1
    found = torch.empty(len(reports), 128)
    for position, report in enumerate(reports):
        ids, values = zip(*report.top, strict=True)
        found[position, list(ids)] = torch.tensor(values)
    torch.testing.assert_close(found, reference[:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("theta", [None, 2500.0])
def test_reads_rope_as_older_releases_wrote_it(theta: float | None, tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", rope_parameters={**LLAMA3_ROPE, "rope_theta": theta or 1e4})
    modern = read_model_spec(str(tmp_path)).rope
    scaling = {k: v for k, v in LLAMA3_ROPE.items() if k not in ("rope_type", "rope_theta")}
    edit_json(
        tmp_path / "config.json",
        rope_parameters=...,
        rope_theta=... if theta is None else theta,
        rope_scaling={**scaling, "type": "llama3"},
    )
    assert read_model_spec(str(tmp_path)).rope == modern


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", rope_parameters=LLAMA3_ROPE)
    rope = read_model_spec(str(tmp_path)).rope
    plain = 1.0 / rope.theta ** (torch.arange(0, 16, 2) / 16)
    ratio = plain / inverse_frequencies(rope, 16)
    assert ratio[0] == 1.0
    assert ratio[-1] == rope.factor
    assert (ratio.diff() >= 0).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor is missing"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"architectures": ["GPT2LMHeadModel"]}, "Qwen3ForCausalLM"),
        ({"architectures": ...}, "architectures is missing"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
    ],
)
def test_refuses_a_configuration_by_name(
    changes: dict[str, object], named: str, tmp_path: Path
) -> None:
    save_model(tmp_path, "Llama")
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=named):
        read_model_spec(str(tmp_path))


def test_end_tokens_come_from_both_files(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    edit_json(tmp_path / "generation_config.json", eos_token_id=[2, 7])
    assert read_model_spec(str(tmp_path)).eos_token_ids == (2, 7)
