"""The whole engine on a small random model: the same tokens as transformers, however it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.engine.driving import VOCAB, save_model
from tests.engine.fakes import Collector, generate, make_engine

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.protos.clock import ManualClock
from baton.protos.errors import ConfigError, OverloadedError
from baton.protos.types import FinishReason, GenerateRequest, RequestOutput, SamplingParams

MAX_TOKENS = 24
LENGTHS = (1, 7, 8, 9, 16, 33, 70, 100)


@dataclass(frozen=True)
class Reference:
    """A saved model, and what transformers generates for prompts of mixed length."""

    folder: Path
    prompts: dict[str, list[int]]
    expected: dict[str, list[int]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("qwen3")
    model = save_model(folder, "Qwen3", head_dim=32, tie_word_embeddings=True)
    generator = torch.Generator().manual_seed(3)
    prompts = {
        f"len{n}": torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS
    }
    expected = {}
    for name, prompt in prompts.items():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_TOKENS,
                min_new_tokens=MAX_TOKENS,
                eos_token_id=None,
                do_sample=False,
            )
        expected[name] = whole[0, len(prompt) :].tolist()
    return Reference(folder, prompts, expected)


@pytest.fixture
def engines(reference: Reference) -> Iterator[Engines]:
    built = Engines(reference)
    yield built
    built.close()


class Engines:
    """Builds engines of the reference model; at the end each must have lost no block."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._built: list[Engine] = []

    def make(self, **changes: object) -> tuple[Engine, Collector]:
        values: dict[str, object] = {
            "model_dir": str(self._reference.folder),
            "device": "cpu",
            "block_size": 8,
            "num_blocks": 128,
            "max_running": 16,
            "max_step_tokens": 64,
        }
        engine = Engine(EngineConfig(**{**values, **changes}))  # type: ignore[arg-type]
        self._built.append(engine)
        return engine, Collector(engine)

    def close(self) -> None:
        for engine in self._built:
            assert not engine.has_work()
            engine.check_integrity()
            load = engine.load()
            assert load.free_blocks == load.total_blocks
            engine.close()


def greedy(name: str, prompt: list[int]) -> GenerateRequest:
    return generate(name, prompt, max_tokens=MAX_TOKENS)


@pytest.mark.parametrize(
    ("changes", "preempts"),
    [
        ({}, False),
        ({"max_running": 8, "max_step_tokens": 9}, False),
        ({"max_running": 3, "max_step_tokens": 1000}, False),
        ({"num_blocks": 24, "expected_output_tokens": 0, "block_size": 8, "max_running": 8}, True),
        (
            {
                "num_blocks": 24,
                "expected_output_tokens": 0,
                "prefix_cache": False,
                "max_running": 8,
            },
            True,
        ),
        ({"overlap": True, "max_running": 8, "max_step_tokens": 9}, False),
        ({"overlap": True, "num_blocks": 24, "expected_output_tokens": 0, "max_running": 8}, True),
        ({"overlap": True, "graph_max_rows": 16, "graph_max_tokens": 64}, False),
        ({"graph_max_rows": 3, "max_running": 8, "max_step_tokens": 9}, False),
    ],
    ids=[
        "one-batch",
        "tiny-chunks",
        "few-slots",
        "preempted",
        "preempted-uncached",
        "overlap",
        "overlap-preempted",
        "padded",
        "padded-decodes",
    ],
)
def test_greedy_tokens_equal_transformers(engines, reference, changes, preempts):
    engine, collector = engines.make(**changes)
    for name, prompt in reference.prompts.items():
        engine.add(greedy(name, prompt))
    collector.run()
    assert collector.token_ids == reference.expected
    assert set(collector.finish_reasons.values()) == {FinishReason.LENGTH}
    assert (collector.num_preempted > 0) == preempts


def test_prefix_hits_change_no_token(engines, reference):
    engine, collector = engines.make()
    prompt, expected = reference.prompts["len100"], reference.expected["len100"]
    engine.add(greedy("cold", prompt))
    collector.run()
    engine.add(greedy("warm", prompt))
    (first,) = engine.step().outputs
    assert first.num_cached_tokens == 96
    collector.token_ids["warm"] = first.token_ids
    # A second turn: the first one's answer is in the cache as well.
    engine.add(generate("turn", prompt + expected[:12], max_tokens=MAX_TOKENS - 12))
    collector.run()
    assert collector.token_ids["warm"] == expected
    assert collector.token_ids["turn"] == expected[12:]
    assert engine.drain_kv_events().stored == engine.snapshot_kv().stored


@pytest.mark.parametrize("already", [1, 7, 23])
def test_a_replay_goes_on_with_the_same_tokens(engines, reference, already):
    engine, collector = engines.make()
    prompt, expected = reference.prompts["len33"], reference.expected["len33"]
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    engine.add(
        GenerateRequest(
            request_id="r",
            prompt_token_ids=prompt,
            output_token_ids=expected[:already],
            sampling=sampling,
        )
    )
    collector.run()
    assert collector.token_ids["r"] == expected[already:]


def hand_over(prefill: Engine, decode: Engine, request: GenerateRequest) -> RequestOutput:
    """A prefill worker and a decode worker in one function, the wire a tensor copy."""
    name = request.request_id
    reservation = decode.reserve(request)
    assert reservation is not None
    prefill.add(request, hold=True)
    outputs: list[RequestOutput] = []
    source: list[int] = []
    while prefill.has_work():
        step = prefill.step()
        outputs += step.outputs
        source = [*step.progress[-1].block_ids] if step.progress else source
    (first,) = outputs
    start = reservation.num_cached_tokens // decode.config.block_size
    target = list(reservation.block_ids)
    decode.pool.tensor[target[start:]] = prefill.pool.tensor[source[start:]]
    prefill.release(name)
    decode.receive(name, reservation.epoch, first)
    return first


def test_disaggregated_equals_aggregated(engines, reference):
    prefill, _ = engines.make(max_step_tokens=20, max_running=2)
    decode, collector = engines.make()
    for name, prompt in reference.prompts.items():
        collector.token_ids[name] = hand_over(prefill, decode, greedy(name, prompt)).token_ids
        # Requests join while others decode.
        collector.step()
    collector.run()
    assert collector.token_ids == reference.expected


def test_a_second_handover_writes_only_what_the_decode_worker_lacks(engines, reference):
    prefill, _ = engines.make()
    decode, collector = engines.make()
    prompt, expected = reference.prompts["len70"], reference.expected["len70"]
    for name in ("cold", "warm"):
        first = hand_over(prefill, decode, greedy(name, prompt))
        collector.token_ids[name] = list(first.token_ids)
        collector.run()
        assert collector.token_ids[name] == expected
    assert first.num_cached_tokens == 64, "the prefill worker had it cached as well"


def test_sampled_tokens_do_not_depend_on_the_company_or_the_worker(engines, reference):
    sampling = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=12, ignore_eos=True)

    def seeded(name: str) -> GenerateRequest:
        prompt = reference.prompts["len16"]
        return GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)

    alone, collector = engines.make()
    alone.add(seeded("r"))
    collector.run()
    expected = collector.token_ids["r"]

    crowded, collector = engines.make(num_blocks=24, max_running=8, expected_output_tokens=0)
    for name, prompt in reference.prompts.items():
        crowded.add(greedy(name, prompt))
    crowded.add(seeded("r"))
    collector.run()
    assert collector.num_preempted > 0
    assert collector.token_ids.pop("r") == expected
    assert collector.token_ids == reference.expected

    prefill, _ = engines.make()
    decode, collector = engines.make()
    collector.token_ids["r"] = list(hand_over(prefill, decode, seeded("r")).token_ids)
    collector.run()
    assert collector.token_ids["r"] == expected


def test_eos_ends_a_request_and_is_reported(engines, reference):
    engine, collector = engines.make()
    name, prompt = "len33", reference.prompts["len33"]
    stop = reference.expected[name][5]
    engine.add(generate(name, prompt, max_tokens=MAX_TOKENS, stop_token_ids=(stop,)))
    collector.run()
    end = reference.expected[name].index(stop) + 1
    assert collector.token_ids[name] == reference.expected[name][:end]
    assert collector.finish_reasons[name] is FinishReason.STOP


def test_prompt_logprobs_in_chunks_and_around_the_cache(engines, reference):
    engine, _ = engines.make(max_running=4, max_step_tokens=7)
    prompt = reference.prompts["len33"]
    engine.add(generate("fill", prompt, max_tokens=1))
    Collector(engine).run()
    engine.add(generate("r", prompt, max_tokens=2, prompt_logprobs=2, logprobs=1))
    told: list[RequestOutput] = []
    while engine.has_work():
        told += engine.step().outputs
    found = told[0].prompt_logprobs
    assert found is not None
    assert found[0] is None
    assert [one.token_id for one in found[1:] if one is not None] == prompt[1:]
    assert [one.logprobs[0].token_id for one in told if one.logprobs] == reference.expected[
        "len33"
    ][:2]


# The facade on the fake runner.


def test_load_measures_speed_over_steps():
    fake = make_engine()
    assert fake.engine.load().prefill_tokens_per_s == 0.0
    fake.engine.add(generate("a", [1] * 16, max_tokens=3))
    fake.engine.step()
    load = fake.engine.load()
    assert load.prefill_tokens_per_s == pytest.approx(8 / 0.01)
    assert load.decode_step_s == 0.0
    assert load.queued_prefill_tokens == 8
    assert load.running_kv_tokens == 8
    Collector(fake.engine).run()
    assert fake.engine.load().decode_step_s == pytest.approx(0.01)
    statistics = fake.engine.statistics()
    assert (statistics.num_steps, statistics.num_prefill_tokens) == (4, 16)
    assert statistics.num_decode_tokens == 2
    fake.engine.close()
    assert fake.runner.closed


def test_a_full_queue_says_when_to_come_back():
    fake = make_engine(max_waiting=1)
    fake.engine.add(generate("a", [1] * 8, max_tokens=1))
    fake.engine.step()
    fake.engine.add(generate("b", [1] * 40))
    with pytest.raises(OverloadedError, match="max_waiting is 1") as refused:
        fake.engine.add(generate("c", [1]))
    assert refused.value.retry_after_s == pytest.approx(40 / 800, abs=0.06)
    fake.engine.abort("b")


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_size", 0), ("max_running", 0), ("max_step_tokens", 4), ("dtype", "int8")],
)
def test_configuration_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field} is") as refused:
        EngineConfig(**{"model_dir": "m", "max_running": 4, field: value})
    assert refused.value.param == field


def test_the_clock_is_injected():
    fake = make_engine()
    assert isinstance(fake.clock, ManualClock)
    fake.engine.add(generate("a", [1]))
    assert fake.engine.step().duration_s == pytest.approx(0.01)
    fake.engine.abort("a")


def test_an_output_says_when_computing_its_prompt_began():
    """However long it waited, and however often it was sent back to the queue."""
    fake = make_engine(max_running=1)
    fake.engine.add(generate("a", [1] * 4, max_tokens=1))
    fake.engine.add(generate("b", [1] * 4, max_tokens=2))
    fake.clock.advance(2.0)
    began = {}
    while len(began) < 2:
        now_s = fake.clock.now_s()
        for output in fake.engine.step().outputs:
            began.setdefault(output.request_id, (output.began_s, now_s))
        fake.clock.advance(3.0)
    assert began["a"] == (2.0, 2.0)
    assert began["b"][0] == began["b"][1] > 2.0
