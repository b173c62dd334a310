"""Steps: chunks, batches, slots, reports; what a request gets must not depend on its company."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.engine.driving import Driver, new_driver, save_model

from baton.engine.batch import ScheduledRow
from baton.engine.batch_state import BatchState
from baton.engine.transfer import Array, Sent, pack, packed_bytes
from baton.protos.types import SamplingParams, TokenLogprob


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "Qwen3", head_dim=16)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, 128) for _ in range(length)]


SEEDED = SamplingParams(
    temperature=0.9, top_k=40, top_p=0.95, seed=1234, frequency_penalty=0.4, logprobs=2
)


def outputs(folder: Path, sampling: SamplingParams, *, chunk: int, block_size: int) -> list[int]:
    driver = new_driver(folder, block_size=block_size)
    driver.add(prompt_of(50), sampling)
    return driver.generate(20, chunk=chunk)["r"]


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.0), SEEDED], ids=["greedy", "seed"]
)
def test_chunks_and_block_sizes_do_not_change_tokens(
    folder: Path, sampling: SamplingParams
) -> None:
    whole = outputs(folder, sampling, chunk=512, block_size=8)
    for chunk, block_size in ((1, 8), (7, 8), (16, 16), (49, 4)):
        assert outputs(folder, sampling, chunk=chunk, block_size=block_size) == whole


def test_a_seeded_row_is_the_same_alone_and_among_16_others(folder: Path) -> None:
    alone = new_driver(folder)
    alone.add(prompt_of(30), SEEDED)
    expected = alone.generate(24)["r"]

    crowd = new_driver(folder)
    for other in range(16):
        sampling = SamplingParams(
            temperature=other % 3 / 2,
            seed=other,
            top_p=0.5 + other / 40,
            presence_penalty=other % 2,
            logit_bias=((other, 3.0),),
            logprobs=other % 5 or None,
        )
        crowd.add(prompt_of(5 + 3 * other, seed=other), sampling, name=f"other{other}")
    crowd.step([(request, 4) for request in list(crowd.requests.values())[:5]])
    crowd.add(prompt_of(30), SEEDED)
    assert crowd.generate(24, chunk=11)["r"] == expected


def test_a_replay_continues_with_the_same_tokens(folder: Path) -> None:
    first = new_driver(folder)
    first.add(prompt_of(30), SEEDED)
    whole = first.generate(20)["r"]
    second = new_driver(folder)
    second.add(prompt_of(30), SEEDED, output=whole[:9])
    assert second.generate(20)["r"] == whole


def test_a_preempted_request_comes_back_in_another_slot(folder: Path) -> None:
    driver = new_driver(folder)
    driver.add(prompt_of(30), SEEDED)
    whole = driver.generate(20)["r"]

    driver = new_driver(folder)
    request = driver.add(prompt_of(30), SEEDED)
    driver.generate(6)
    driver.runner.remove_row(request)
    other = driver.add(prompt_of(12, seed=9), SEEDED, name="other")
    other.slot = request.slot
    driver.runner.add_row(other)
    request.slot, request.block_ids, request.num_computed_tokens = 17, [], 0
    driver.runner.add_row(request)
    assert driver.generate(20)["r"] == whole


def test_steps_may_be_launched_before_the_last_is_read(folder: Path) -> None:
    driver = new_driver(folder)
    driver.add(prompt_of(20), SEEDED)
    expected = driver.generate(8)["r"]

    driver = new_driver(folder)
    request = driver.add(prompt_of(20), SEEDED)
    request.block_ids = list(range(8))
    pending = [
        driver.runner.launch([ScheduledRow(request=request, num_new_tokens=20, samples=True)])
    ]
    for step in range(7):
        request.num_computed_tokens = 20 + step
        row = ScheduledRow(request=request, num_new_tokens=1, samples=True)
        pending.append(driver.runner.launch([row]))
    assert [token for step in pending for token in step.wait().sampled] == expected


@pytest.mark.parametrize("chunk", [512, 13])
def test_prompt_logprobs_equal_transformers(
    folder: Path, reference: transformers.PreTrainedModel, chunk: int
) -> None:
    driver = new_driver(folder, max_step_tokens=1024)
    prompts = {"a": prompt_of(150), "b": prompt_of(9, seed=2)}
    for name, prompt in prompts.items():
        driver.add(prompt, SamplingParams(temperature=0.0, prompt_logprobs=3), name=name)
    driver.add(prompt_of(20, seed=3), name="silent")
    driver.generate(2, chunk=chunk)
    assert set(driver.prompt_logprobs) == {"a", "b"}
    for name, prompt in prompts.items():
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
        check_reports(driver.prompt_logprobs[name], prompt[1:], expected)


def check_reports(found: list[TokenLogprob], tokens: list[int], expected: torch.Tensor) -> None:
    assert [report.token_id for report in found] == tokens
    for report, line in zip(found, expected, strict=False):
        assert report.logprob == pytest.approx(line[report.token_id].item(), abs=1e-4)
        assert report.rank == int((line > line[report.token_id]).sum()) + 1
        best = line.topk(3)
        assert [token for token, _ in report.top] == best.indices.tolist()
        assert [value for _, value in report.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_each_row_reports_as_many_alternatives_as_it_asked_for(folder: Path) -> None:
    driver = new_driver(folder)
    for wanted in (None, 0, 2, 5):
        sampling = SamplingParams(temperature=0.0, logprobs=wanted)
        driver.add(prompt_of(6), sampling, name=str(wanted))
    result = driver.step([(request, 6) for request in driver.requests.values()])
    assert result.logprobs[0] is None
    reports = [report for report in result.logprobs if report is not None]
    assert [len(report.top) for report in reports] == [0, 2, 5]
    assert all(report.rank == 1 for report in reports)
    assert reports[1].top[0] == (reports[1].token_id, reports[1].logprob)


def test_rows_that_do_not_sample_return_nothing(folder: Path) -> None:
    driver = new_driver(folder)
    first = driver.add(prompt_of(20), name="first")
    second = driver.add(prompt_of(10), name="second")
    result = driver.step([(first, 8), (second, 10)])
    assert len(result.sampled) == 1
    assert driver.step([(first, 4)]).sampled == []
    assert driver.runner.run([]).sampled == []


def test_only_the_scheduled_tokens_are_written(folder: Path) -> None:
    driver = new_driver(folder)
    driver.add(prompt_of(13))
    pool = driver.runner.pool
    driver.generate(1)
    written = pool.tensor.abs().sum(dim=(1, 2, 3, 5)) > 0
    counts = {block: int(line.sum()) for block, line in enumerate(written) if line.any()}
    assert counts == {255: 8, 254: 5}


def test_block_tables_kept_apart_from_the_hosts_give_the_same_tokens(folder: Path) -> None:
    """The path of a GPU, where new blocks travel with each step."""
    shared = new_driver(folder)
    apart = new_driver(folder)
    apart.runner._batch = BatchState(24, 512, 8, torch.device("cpu"), mirrored=True)
    for driver in (shared, apart):
        driver.add(prompt_of(30), SEEDED)
        driver.add(prompt_of(11, seed=4), name="other")
    assert apart.generate(30, chunk=9) == shared.generate(30, chunk=9)


def test_an_upload_unpacks_to_what_was_packed() -> None:
    arrays: list[Array] = [
        np.arange(5, dtype=np.int32),
        np.arange(6, dtype=np.int64).reshape(2, 3) - 2**40,
        np.zeros(0, dtype=np.int64),
        np.array([[1.5], [-2.5], [0.25]], dtype=np.float32),
        np.array([True, False, True]),
    ]
    packed = torch.full((packed_bytes(arrays),), 0xFF, dtype=torch.uint8)
    pack(arrays, packed)
    for array, tensor in zip(arrays, Sent(arrays, packed), strict=True):
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype
        # else a kernel is compiled anew for it, in the middle of serving
        assert (tensor.data_ptr() - packed.data_ptr()) % 16 == 0


def test_bfloat16_runs_on_the_same_path(folder: Path) -> None:
    driver = new_driver(folder, dtype="bfloat16")
    driver.add(prompt_of(20), SEEDED)
    driver.add(prompt_of(9), name="greedy")
    assert driver.runner.pool.tensor.dtype == torch.bfloat16
    assert driver.runner.model.dtype == driver.runner.pool.layout.dtype == "bfloat16"
    tokens = driver.generate(5, chunk=8)
    assert all(0 <= token < 128 for row in tokens.values() for token in row)


def test_fp8_keys_and_values_stay_near(folder: Path) -> None:
    found = []
    for dtype in ("auto", "fp8_e4m3"):
        driver = new_driver(folder, kv_cache_dtype=dtype)
        driver.add(prompt_of(60), SamplingParams(temperature=0.0, prompt_logprobs=0))
        driver.generate(4, chunk=25)
        found.append(torch.tensor([r.logprob for r in driver.prompt_logprobs["r"]]))
        pool = driver.runner.pool
    assert pool.layout.dtype == "float8_e4m3fn"
    assert pool.tensor.dtype == torch.float8_e4m3fn
    assert pool.tensor[0].nbytes == pool.layout.block_bytes
    assert 0 < (found[1] - found[0]).abs().mean() < 0.3


def test_the_pool_is_one_contiguous_run_per_block(folder: Path) -> None:
    driver: Driver = new_driver(folder)
    pool = driver.runner.pool
    assert pool.tensor.shape == (256, 3, 2, 2, 8, 16)
    assert pool.tensor.is_contiguous()
    assert pool.tensor[0].nbytes == pool.layout.block_bytes
    assert pool.layers[1].data_ptr() == pool.tensor[0, 1].data_ptr()
