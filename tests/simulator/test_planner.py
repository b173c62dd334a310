from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.simulator.helpers import config, times, trace

from baton.cluster.cli import baton
from baton.protos.errors import ConfigError
from baton.router.times import H100_8B
from baton.simulator.planner import busy_workers, plan_fleet
from baton.simulator.shapes import GPUS, LLAMA_8B, ModelShape, times_for

# Prompts of 0.24 s, four of them a second for ten seconds: about one worker's work.
STEADY = trace(*((index / 4, 8192, 4) for index in range(40)))


def test_the_cheapest_fleet_that_reaches_the_target() -> None:
    found = plan_fleet(STEADY, config(times=times()), target=0.95, max_workers=6)
    assert found.best is not None
    assert found.best.outcome.attainment >= 0.95
    assert busy_workers(STEADY, config()) == pytest.approx(0.75, abs=0.1)
    smaller = [sized for sized in found.tried if sized.workers < found.best.workers]
    assert all(sized.outcome.attainment < 0.95 for sized in smaller)
    sizes = [sized.workers for sized in found.frontier()]
    assert sizes == sorted(set(sizes))


def test_no_fleet_is_an_answer_too() -> None:
    hopeless = config(times=times())
    hopeless = replace(hopeless, router=replace(hopeless.router, ttft_slo_s=0.01))
    assert plan_fleet(STEADY, hopeless, target=0.95, max_workers=2).best is None
    with pytest.raises(ConfigError, match="target is 2"):
        plan_fleet(STEADY, hopeless, target=2, max_workers=2)


def test_times_scale_with_the_shape_and_the_gpu() -> None:
    same, kv_tokens = times_for(LLAMA_8B, GPUS["h100"], 1)
    assert same.decode_pool == H100_8B.decode_pool
    assert same.kv_bytes_per_token == H100_8B.kv_bytes_per_token
    assert kv_tokens == pytest.approx(444_528, rel=0.01)
    h200, more = times_for(LLAMA_8B, GPUS["h200"], 1)
    assert h200.decode_pool.decode.fixed_s < 0.75 * same.decode_pool.decode.fixed_s
    assert h200.prefill_pool.prefill.per_token_s == same.prefill_pool.prefill.per_token_s
    assert more > 2 * kv_tokens
    large = replace(LLAMA_8B, layers=80, hidden=8192, intermediate=28672, heads=64)
    with pytest.raises(ConfigError, match="GiB"):
        times_for(large, GPUS["h100"], 1)
    four, _ = times_for(large, GPUS["h100"], 4)
    assert 2 < four.prefill_pool.prefill.per_token_s / same.prefill_pool.prefill.per_token_s < 4


def test_a_shape_is_read_from_a_model_folder(tmp_path: Path) -> None:
    raw = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert ModelShape.read(tmp_path).kv_heads == 4
    assert ModelShape.read(tmp_path).head_dim == 16
    (tmp_path / "config.json").write_text(json.dumps({**raw, "vocab_size": "many"}))
    with pytest.raises(ConfigError, match="vocab_size"):
        ModelShape.read(tmp_path)


def test_the_command_answers_and_draws(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 250 * i, "input_length": 4000, "output_length": 4, "hash_ids": []}
        for i in range(20)
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "report"
    arguments = ["plan", "--trace", str(file), "--gpu-rate", "2", "--json", "--out", str(out)]
    result = CliRunner().invoke(baton, arguments, catch_exceptions=False)
    answer = json.loads(result.output)
    best = answer["best"]
    assert best["price_per_hour"] == 2 * (best["prefill"] + best["decode"])
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "report.html").read_text()
    assert "data:image/png;base64," in text
    assert "http" not in text
