"""The whole engine on several ranks gives the tokens of one, however its requests run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.engine.driving import save_model
from tests.engine.parallel.ranks import ThreadRanks

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.protos.errors import ConfigError
from baton.protos.types import GenerateRequest, RequestOutput, SamplingParams

TINY = Path(__file__).resolve().parents[3] / "models" / "baton-tiny"
NUM_TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
SEEDED = SamplingParams(
    temperature=0.8,
    top_p=0.9,
    seed=11,
    repetition_penalty=1.2,
    max_tokens=NUM_TOKENS,
    ignore_eos=True,
    logit_bias=((7, 1.5),),
)
REPORTED = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, prompt_logprobs=1)

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    built: list[Engine] = []

    def make(folder: Path, size: int, **changes: object) -> Engine:
        values: dict[str, object] = {
            "model_dir": str(folder),
            "device": "cpu",
            "block_size": 8,
            "num_blocks": 96,
            "max_running": 8,
            "max_step_tokens": 40,
            "tensor_parallel_size": size,
            **changes,
        }
        engine = Engine(EngineConfig(**values), ranks=ThreadRanks())  # type: ignore[arg-type]
        built.append(engine)
        return engine

    yield make
    for engine in built:
        engine.check_integrity()
        engine.close()


@dataclass
class Told:
    """What an engine told of its requests."""

    tokens: dict[str, list[int]]
    logprobs: list[float]
    num_cached: dict[str, int]
    num_preempted: int


def serve(engine: Engine, vocab_size: int) -> Told:
    """Prompts of several lengths and kinds, and one of them again once it is cached."""
    source = torch.Generator().manual_seed(1)

    def prompt(length: int) -> list[int]:
        return torch.randint(3, vocab_size, (length,), generator=source).tolist()

    prompts = {name: prompt(length) for name, length in (("a", 50), ("b", 17), ("c", 33))}
    samplings = {"a": GREEDY, "b": SEEDED, "c": REPORTED}
    for name, sampling in samplings.items():
        engine.add(
            GenerateRequest(request_id=name, prompt_token_ids=prompts[name], sampling=sampling)
        )
    told = Told({}, [], {}, 0)
    collect(engine, told)
    engine.add(
        GenerateRequest(
            request_id="again",
            prompt_token_ids=prompts["a"],
            output_token_ids=told.tokens["a"][:5],
            sampling=GREEDY,
        )
    )
    collect(engine, told)
    return told


def collect(engine: Engine, told: Told) -> None:
    outputs: list[RequestOutput] = []
    while engine.has_work():
        step = engine.step()
        outputs += step.outputs
        told.num_preempted += step.num_preempted
    for output in outputs:
        told.tokens.setdefault(output.request_id, []).extend(output.token_ids)
        told.num_cached[output.request_id] = output.num_cached_tokens
        reports = [*(output.prompt_logprobs or ()), *(output.logprobs or ())]
        told.logprobs += [report.logprob for report in reports if report is not None]


def check_same(found: Told, expected: Told) -> None:
    assert found.tokens == expected.tokens
    assert found.num_cached == expected.num_cached
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_the_shipped_model_gives_the_tokens_of_one_rank(make_engine: MakeEngine, size: int) -> None:
    expected = serve(make_engine(TINY, 1), 1024)
    assert expected.num_cached["again"] == 48
    found = serve(make_engine(TINY, size), 1024)
    check_same(found, expected)


def test_preempted_and_launched_ahead(make_engine: MakeEngine, tmp_path: Path) -> None:
    save_model(tmp_path, "Qwen2", vocab_size=125)
    expected = serve(make_engine(tmp_path, 1), 125)
    changes = {"num_blocks": 11, "prefix_cache": False, "expected_output_tokens": 1}
    tight = serve(make_engine(tmp_path, 2, **changes), 125)
    assert tight.num_preempted > 0
    assert tight.tokens == expected.tokens
    padded = make_engine(tmp_path, 2, overlap=True, graph_max_rows=8, graph_max_tokens=40)
    check_same(serve(padded, 125), expected)


def test_a_size_that_does_not_fit_starts_nothing(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    config = EngineConfig(model_dir=str(tmp_path), device="cpu", tensor_parallel_size=3)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 3.*work: 1, 2, 4"):
        Engine(config, ranks=ThreadRanks())
    with pytest.raises(ConfigError, match="tensor_parallel_size is 0"):
        EngineConfig(model_dir=str(tmp_path), tensor_parallel_size=0)
    with pytest.raises(ConfigError, match=r"device is 'cuda:1'.*use auto, cuda or cpu"):
        EngineConfig(model_dir=str(tmp_path), tensor_parallel_size=2, device="cuda:1")
