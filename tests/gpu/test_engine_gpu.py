"""The whole engine on a GPU, in float32: the same tokens as transformers, however it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.engine.driving import Driver, new_driver, save_model
from tests.engine.test_engine import Engines, Reference, greedy, reference
from tests.engine.test_runner import SEEDED, check_reports, prompt_of

from baton.engine.batch import ScheduledRow
from baton.protos.types import SamplingParams

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

__all__ = ["reference"]
NO_GRAPHS = {"graph_max_rows": 0, "graph_max_tokens": 0}


@pytest.fixture
def engines(reference: Reference) -> Iterator[Engines]:
    built = Engines(reference)
    yield built
    built.close()
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("changes", "preempts"),
    [
        ({}, False),
        (NO_GRAPHS, False),
        ({"overlap": False}, False),
        ({"max_running": 8, "max_step_tokens": 9}, False),
        ({"num_blocks": 24, "max_running": 8, "expected_output_tokens": 0}, True),
        ({"num_blocks": None, "gpu_memory_utilization": 0.3, "max_running": 8}, False),
    ],
    ids=["graphs", "eager", "in-turn", "tiny-chunks", "preempted", "measured-memory"],
)
def test_greedy_tokens_equal_transformers(
    engines: Engines, reference: Reference, changes: dict[str, object], preempts: bool
) -> None:
    engine, collector = engines.make(device="cuda", dtype="float32", **changes)
    for name, prompt in reference.prompts.items():
        engine.add(greedy(name, prompt))
    collector.run()
    assert collector.token_ids == reference.expected
    assert (collector.num_preempted > 0) == preempts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "Qwen3", head_dim=16)
    return path


def on_gpu(folder: Path, **changes: object) -> Driver:
    return new_driver(folder, device="cuda", dtype="float32", **changes)


FILTERS = (
    SEEDED,
    SamplingParams(temperature=1.2, top_p=0.8, seed=5),
    SamplingParams(temperature=0.7, min_p=0.05, top_k=9, seed=6),
    SamplingParams(temperature=1.0, seed=7, logit_bias=((4, 3.0),), presence_penalty=1.0),
    SamplingParams(temperature=0.0, min_tokens=9, repetition_penalty=1.3),
    SamplingParams(temperature=0.0),
)


def test_sampled_tokens_equal_the_cpus(folder: Path) -> None:
    seen = []
    for driver in (new_driver(folder), on_gpu(folder), on_gpu(folder, **NO_GRAPHS)):
        for i, sampling in enumerate(FILTERS):
            driver.add(prompt_of(9 + 8 * i, seed=i), sampling, name=str(i))
        seen.append(driver.generate(16, chunk=20))
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


def test_prompt_logprobs(folder: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    driver = on_gpu(folder)
    prompt = prompt_of(70)
    driver.add(prompt, SamplingParams(temperature=0.0, prompt_logprobs=3))
    driver.generate(2, chunk=33)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    check_reports(driver.prompt_logprobs["r"], prompt[1:], expected)


def test_a_step_never_waits_for_the_device(folder: Path) -> None:
    """Rows enter, prompts and decodes are launched, and nothing is read."""
    driver = on_gpu(folder)
    for i, sampling in enumerate(FILTERS):
        driver.add(prompt_of(9, seed=i), sampling, name=str(i))
    # compiled and allocated before it is checked
    driver.generate(3)
    requests = list(driver.requests.values())
    torch.cuda.set_sync_debug_mode("error")
    try:
        late = driver.add(prompt_of(11, seed=9), SEEDED, name="late")
        late.block_ids = [0, 1]
        rows = [ScheduledRow(request=r, num_new_tokens=1, samples=True) for r in requests]
        rows.append(ScheduledRow(request=late, num_new_tokens=11, samples=True))
        for row in rows:
            row.request.block_ids = row.request.block_ids or [0]
        step = driver.runner.launch(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(step.wait().sampled) == len(rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_and_fp8_stay_near(folder: Path, dtype: str) -> None:
    """Log-probabilities of a prompt beside float32's."""
    sampling = SamplingParams(temperature=0.0, prompt_logprobs=0)
    found = []
    for changes in ({"dtype": "float32"}, {"dtype": dtype}, {"kv_cache_dtype": "fp8_e4m3"}):
        driver = new_driver(folder, **{"device": "cuda", "dtype": dtype, **changes})
        driver.add(prompt_of(60), sampling)
        driver.generate(4, chunk=25)
        found.append(torch.tensor([r.logprob for r in driver.prompt_logprobs["r"]]))
    assert (found[1] - found[0]).abs().mean() < 0.15
    assert (found[2] - found[0]).abs().mean() < 0.5
