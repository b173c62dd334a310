"""Adapters in a real engine: equal to merged weights, and a crowd of them to each alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.engine.adapters.merging import save_merged
from tests.engine.adapters.peft_folder import ALL_LINEAR, random_tensors, save_adapter
from tests.engine.driving import edit_json, runner_config, save_model

from baton.engine.adapters.folder import describe_adapter
from baton.engine.engine import Engine
from baton.engine.model_info import read_model_spec
from baton.protos.adapters import AdapterRef
from baton.protos.errors import AdapterError, AdapterNotFoundError
from baton.protos.types import GenerateRequest, RequestOutput, SamplingParams

EVERYTHING = (*ALL_LINEAR, "embed_tokens", "lm_head")
NUM_TOKENS = 12
PROMPT = [5, 9, 11, 40, 41, 42, 43, 90, 7, 8, 19]


class Saved(NamedTuple):
    base: Path
    merged: dict[str, Path]
    refs: dict[str, AdapterRef]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A model, three adapters of different ranks and targets, and the model merged with each."""
    root = tmp_path_factory.mktemp("adapters")
    base = root / "base"
    save_model(base, "Qwen3", head_dim=16, tie_word_embeddings=request.param)
    spec = read_model_spec(str(base))
    patterns = {"rank_pattern": {"k_proj": 3}, "use_rslora": True}
    folders = {
        "all": save_adapter(
            root / "all",
            random_tensors(spec, EVERYTHING, 4, ranks={"k_proj": 3}, seed=1),
            targets=EVERYTHING,
            **patterns,
        ),
        "some": save_adapter(
            root / "some",
            random_tensors(spec, ("q_proj", "down_proj"), 9, seed=2),
            rank=9,
            targets=("q_proj", "down_proj"),
        ),
        "head": save_adapter(
            root / "head",
            random_tensors(spec, ("lm_head",), 2, seed=3),
            rank=2,
            targets=("lm_head",),
        ),
    }
    merged = {
        name: save_merged(base, folder, root / f"m-{name}") for name, folder in folders.items()
    }
    for folder in merged.values():
        edit_json(folder / "config.json", tie_word_embeddings=False)
    refs = {name: describe_adapter(name, str(folder), spec, 16) for name, folder in folders.items()}
    return Saved(base, merged, refs)


@contextmanager
def engine_on(folder: Path, **changes: object) -> Iterator[Engine]:
    with closing(Engine(runner_config(folder, self_check=True, **changes))) as engine:
        yield engine


def generate(name: str, prompt: list[int], adapter_id: str = "", **more: object) -> GenerateRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, **more)  # type: ignore[arg-type]
    return GenerateRequest(
        request_id=name, prompt_token_ids=prompt, sampling=sampling, adapter_id=adapter_id
    )


def run(engine: Engine, *requests: GenerateRequest) -> dict[str, list[RequestOutput]]:
    found: dict[str, list[RequestOutput]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add(request)
    end_s = time.monotonic() + 60
    while any(not o or o[-1].finish_reason is None for o in found.values()):
        assert time.monotonic() < end_s, "still running"
        for output in engine.step().outputs if engine.has_work() else ():
            found[output.request_id].append(output)
    engine.check_integrity()
    return found


def tokens(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def logprobs(outputs: list[RequestOutput]) -> list[float]:
    values = [v for o in outputs for v in (*(o.prompt_logprobs or ()), *(o.logprobs or ()))]
    return [value.logprob for value in values if value is not None]


GRAPHS = {"graph_max_rows": 16, "graph_max_tokens": 64}


@pytest.mark.parametrize("changes", [{}, GRAPHS], ids=["exact", "padded"])
def test_equals_merged_weights(saved: Saved, changes: dict[str, object]) -> None:
    """Tokens and log-probabilities of the whole vocabulary's softmax, prompt included."""
    reports = {"logprobs": 1, "prompt_logprobs": 0}
    with engine_on(saved.base, max_loras=2, **changes) as engine:
        for name, ref in saved.refs.items():
            engine.adapters.load(ref)
            with engine_on(saved.merged[name]) as merged:
                expected = run(merged, generate("r", PROMPT, **reports))["r"]
            found = run(engine, generate("r", PROMPT, ref.adapter_id, **reports))["r"]
            assert tokens(found) == tokens(expected), name
            assert logprobs(found) == pytest.approx(logprobs(expected), abs=2e-4), name
        with engine_on(saved.base) as base:
            plain = tokens(run(base, generate("r", PROMPT))["r"])
        assert tokens(run(engine, generate("r", PROMPT))["r"]) == plain
        assert plain != tokens(expected)


@pytest.mark.parametrize("max_loras", [1, 3])
@pytest.mark.parametrize("changes", [{}, {**GRAPHS, "overlap": True}], ids=["exact", "padded"])
def test_a_mixed_batch_equals_each_alone(
    saved: Saved, max_loras: int, changes: dict[str, object]
) -> None:
    """Same prompts for all: a shared prefix would show at once. One slot makes them take turns."""
    ids = ["", *(ref.adapter_id for ref in saved.refs.values())]
    alone: dict[str, list[int]] = {}
    for i, adapter_id in enumerate(ids):
        with engine_on(saved.base, max_loras=3) as engine:
            for ref in saved.refs.values():
                engine.adapters.load(ref)
            alone[str(i)] = tokens(run(engine, generate("r", PROMPT, adapter_id))["r"])
    assert len({tuple(t) for t in alone.values()}) == 4
    with engine_on(saved.base, max_loras=max_loras, max_step_tokens=40, **changes) as engine:
        for ref in saved.refs.values():
            engine.adapters.load(ref)
        crowd = [generate(f"{i}-{copy}", PROMPT, ids[i]) for copy in range(3) for i in range(4)]
        for name, outputs in run(engine, *crowd).items():
            assert tokens(outputs) == alone[name.partition("-")[0]], name
        again = run(engine, generate("again", PROMPT, ids[1]))["again"]
        assert again[-1].num_cached_tokens == 8
        statistics = engine.adapters.resident()
        assert statistics.num_loads == 3
        assert statistics.num_copies >= 3
        assert (statistics.num_evictions > 0) == (max_loras == 1)
        assert sum(adapter.on_device for adapter in statistics.adapters) <= max_loras
        assert {a.num_served for a in statistics.adapters} == {3, 4}


def test_unloading_refuses_new_requests_and_drains_old_ones(saved: Saved) -> None:
    ref = saved.refs["some"]
    with engine_on(saved.base, max_loras=1) as engine:
        with pytest.raises(AdapterNotFoundError) as caught:
            engine.add(generate("x", PROMPT, ref.adapter_id))
        assert caught.value.http_status == 404
        engine.adapters.load(ref)
        engine.adapters.load(ref)
        engine.add(generate("r", PROMPT, ref.adapter_id))
        engine.adapters.unload(ref.adapter_id)
        with pytest.raises(AdapterNotFoundError):
            engine.add(generate("late", PROMPT, ref.adapter_id))
        with pytest.raises(AdapterNotFoundError):
            engine.adapters.unload(ref.adapter_id)
        assert engine.adapters.resident().adapters[0].leaving
        found: list[int] = []
        end_s = time.monotonic() + 60
        while len(found) < NUM_TOKENS and time.monotonic() < end_s:
            if engine.has_work():
                found += [t for o in engine.step().outputs for t in o.token_ids]
        assert len(found) == NUM_TOKENS
        assert engine.adapters.resident().adapters == ()
        engine.adapters.load(ref)
        assert tokens(run(engine, generate("r", PROMPT, ref.adapter_id))["r"]) == found


def test_loads_are_refused_by_name(saved: Saved, tmp_path: Path) -> None:
    ref = saved.refs["all"]
    with engine_on(saved.base) as engine, pytest.raises(AdapterError, match="max_loras is 0"):
        engine.adapters.load(ref)
    with engine_on(saved.base, max_loras=1, max_cpu_loras=1, max_lora_rank=8) as engine:
        changed = AdapterRef(name="all", adapter_id="00", path=ref.path, rank=4)
        with pytest.raises(AdapterError, match="the folder changed"):
            engine.adapters.load(changed)
        with pytest.raises(AdapterError, match="rank 9, but max_lora_rank is 8"):
            engine.adapters.load(saved.refs["some"])
        engine.adapters.load(ref)
        with pytest.raises(AdapterError, match="max_cpu_loras is 1") as caught:
            engine.adapters.load(saved.refs["head"])
        assert caught.value.code == "too_many_adapters"
        assert len(run(engine, generate("r", PROMPT, ref.adapter_id))["r"]) == NUM_TOKENS


def test_values_that_the_device_cannot_hold_are_refused(saved: Saved, tmp_path: Path) -> None:
    spec = read_model_spec(str(saved.base))
    huge = random_tensors(spec, ("q_proj",), 4, size=1e5)
    folder = save_adapter(tmp_path, huge, targets=("q_proj",))
    ref = describe_adapter("huge", str(folder), spec, 16)
    with (
        engine_on(saved.base, max_loras=1, dtype="float16") as engine,
        pytest.raises(AdapterError, match=r"q_proj.lora_B.*beyond float16"),
    ):
        engine.adapters.load(ref)
