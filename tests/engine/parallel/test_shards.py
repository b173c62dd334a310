"""Which part of a model each rank holds, and that the parts put together compute the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.engine.driving import Driver, new_driver, runner_config, save_model
from tests.engine.parallel.ranks import on_ranks

from baton.engine.model_info import read_model_spec
from baton.engine.parallel.group import TorchGroup
from baton.engine.parallel.shards import Shards, Span, check_shardable
from baton.engine.runner import Runner
from baton.protos.clock import ManualClock
from baton.protos.errors import ConfigError
from baton.protos.types import SamplingParams, TokenLogprob

MODELS = {
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "vocab_size": 127}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": 9, "num_key_value_heads": 1, "vocab_size": 126}),
}
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=2),
    "seeded": SamplingParams(
        temperature=0.9, top_k=40, top_p=0.9, seed=5, frequency_penalty=0.5, logprobs=0
    ),
}


def test_spans_cover_everything_once() -> None:
    ranks = [Shards(rank, 4) for rank in range(4)]
    assert [s.split(8) for s in ranks] == [Span(8, 2 * rank, 2, 2) for rank in range(4)]
    assert [s.padded(10) for s in ranks] == [
        Span(10, 0, 3, 3),
        Span(10, 3, 3, 3),
        Span(10, 6, 3, 3),
        Span(10, 9, 1, 3),
    ]
    assert [s.padded(5).count for s in ranks] == [2, 2, 1, 0]
    assert [s.kv_heads(2) for s in ranks] == [
        Span(2, 0, 1, 1),
        Span(2, 0, 1, 1),
        Span(2, 1, 1, 1),
        Span(2, 1, 1, 1),
    ]
    assert Shards(1, 2).kv_heads(4).times(16) == Span(64, 32, 32, 32)


@pytest.mark.parametrize(
    ("size", "shape", "problem"),
    [
        (3, {}, "8 attention heads.* sizes that work: 1, 2, 4, 8"),
        (4, {"num_heads": 12, "num_kv_heads": 6}, "6 key/value heads.*work: 1, 2, 3, 6, 12"),
        (8, {"intermediate_size": 100}, "intermediate_size of 100.*work: 1, 2, 4$"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, size: int, shape: dict[str, int], problem: str
) -> None:
    save_model(tmp_path, "Llama")
    sizes = {"num_heads": 8, "num_kv_heads": 4, "intermediate_size": 96, **shape}
    spec = replace(read_model_spec(str(tmp_path)), **sizes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"^tensor_parallel_size is {size}.*{problem}") as refused:
        check_shardable(spec, size)
    assert refused.value.param == "tensor_parallel_size"
    check_shardable(spec, 2)


def generated(driver: Driver, rank: int = 0) -> tuple[dict[str, list[int]], list[TokenLogprob]]:
    """Tokens and reports; ranks other than 0 know nothing of sampling."""
    source = torch.Generator().manual_seed(0)
    for length, (name, sampling) in zip((21, 8), SAMPLINGS.items(), strict=True):
        prompt = torch.randint(3, 120, (length,), generator=source).tolist()
        unsampled = SamplingParams(temperature=0.0, prompt_logprobs=sampling.prompt_logprobs)
        driver.add(prompt, unsampled if rank else sampling, name=name)
    tokens = driver.generate(8, chunk=16)
    reports = [
        *driver.prompt_logprobs["greedy"],
        *driver.logprobs.get("greedy", ()),
        *driver.logprobs.get("seeded", ()),
    ]
    return tokens, reports


@pytest.mark.parametrize(
    ("case", "size"), [("llama-biases", 2), ("qwen2", 4), ("qwen3", 2), ("mistral", 4)]
)
def test_ranks_compute_what_one_does(tmp_path: Path, case: str, size: int) -> None:
    name, changes = MODELS[case]
    save_model(tmp_path, name, **changes)
    expected, reports = generated(new_driver(tmp_path))

    def run(group: TorchGroup) -> tuple[dict[str, list[int]], list[TokenLogprob]]:
        runner = Runner(runner_config(tmp_path), ManualClock(), group)
        return generated(Driver(runner), group.shards.rank)

    ranks = on_ranks(size, run)
    assert [tokens for tokens, _ in ranks] == [expected] * size
    found = ranks[0][1]
    assert [one.token_id for one in found] == [one.token_id for one in reports]
    assert [one.logprob for one in found] == pytest.approx(
        [one.logprob for one in reports], abs=1e-4
    )


def test_ranks_hold_their_parts_only(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", num_key_value_heads=2)

    def run(group: TorchGroup) -> tuple[int, tuple[int, ...], int]:
        config = runner_config(tmp_path, num_blocks=8 + group.shards.rank)
        runner = Runner(config, ManualClock(), group)
        return runner.pool.layout.kv_heads, tuple(runner._model.embed.shape), runner.pool.num_blocks

    assert on_ranks(4, run) == [(1, (32, 64), 8)] * 4
