"""Shapes that steps are padded to; what padding does to tokens is the engine tests' too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.engine.driving import new_driver, save_model

from baton.engine.graphs import Bucket, StepGraphs, StepResult, decode_buckets, mixed_buckets
from baton.protos.types import SamplingParams

CPU = torch.device("cpu")


def test_decode_buckets_reach_the_batch_size_and_pad_little() -> None:
    assert decode_buckets(0) == []
    assert [b.num_rows for b in decode_buckets(13)] == [1, 2, 4, 8, 13]
    sizes = [b.num_rows for b in decode_buckets(512)]
    assert sizes[-1] == 512
    assert all(b <= 1.15 * a for a, b in pairwise(sizes) if a >= 56)
    assert len(sizes) < 40


def test_a_step_takes_the_smallest_bucket_that_holds_it() -> None:
    buckets = [*decode_buckets(16), *mixed_buckets(200, 16)]
    graphs = StepGraphs(lambda bucket, inputs: StepResult(inputs[0]), buckets, CPU)
    assert graphs.fit(1, 1) == Bucket(1, 1)
    assert graphs.fit(9, 9) == Bucket(16, 16)
    assert graphs.fit(17, 17) is None
    assert graphs.fit(2, 5) == Bucket(64, 8)
    assert graphs.fit(9, 65) == Bucket(128, 16)
    assert graphs.fit(1, 129) is None
    assert StepGraphs(lambda bucket, inputs: StepResult(inputs[0]), [], CPU).fit(1, 1) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "Qwen3", head_dim=16)
    return path


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_padding_changes_nothing_that_is_reported(folder: Path, chunk: int) -> None:
    """Chunks of one token among decodes, rows that do not sample, prompt log-probabilities."""
    seen = []
    for changes in ({}, {"graph_max_rows": 24, "graph_max_tokens": 128}):
        driver = new_driver(folder, **changes)
        driver.add([5, 9, 11] * 7, SamplingParams(temperature=0.8, seed=3, logprobs=2), name="a")
        driver.add([4] * 9, SamplingParams(temperature=0.0, prompt_logprobs=1), name="b")
        tokens = driver.generate(9, chunk=chunk)
        written = driver.runner.pool.tensor.abs().sum(dim=(1, 2, 3, 5)) > 0
        seen.append((tokens, driver.logprobs, driver.prompt_logprobs, written.tolist()))
    assert seen[0][0] == seen[1][0]
    assert seen[0][3] == seen[1][3]
    for reports in (1, 2):
        for name, expected in seen[0][reports].items():
            found = seen[1][reports][name]
            assert [r.token_id for r in found] == [r.token_id for r in expected]
            assert [r.logprob for r in found] == pytest.approx(
                [r.logprob for r in expected], abs=1e-5
            )


def test_greedy_steps_sample_within_the_padded_step(folder: Path) -> None:
    """Three rows in a shape for four: the fourth writes its token where nobody reads."""
    seen = []
    for changes in ({}, {"graph_max_rows": 24}):
        driver = new_driver(folder, **changes)
        for name in "abc":
            driver.add([5, 9, ord(name)], SamplingParams(temperature=0.0), name=name)
        seen.append((driver.generate(9), driver.runner._batch.tokens[:3, :12].tolist()))
    assert seen[0] == seen[1]
