from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from baton.cluster.cli import baton
from baton.protos.errors import ConfigError
from baton.router.times import H100_8B

ROWS = [
    {
        "timestamp": 500 * index,
        "input_length": 2000 + 100 * index,
        "output_length": 20,
        "hash_ids": [0, 1, 10 + index, 40 + index],
    }
    for index in range(20)
]


@pytest.fixture
def trace_file(tmp_path: Path) -> str:
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(baton, ["simulate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_one_json_object_per_policy(trace_file: str) -> None:
    arguments = ("--trace", trace_file, "--policy", "cost,round_robin,oracle", "--prefill", "2")
    more = ("--decode", "1", "--rate-scale", "2", "--ttft-slo", "1", "--itl-slo", "0.05")
    output = run(*arguments, *more, "--seed", "3", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["policy"] for row in rows] == ["cost", "round_robin", "oracle"]
    percentiles = [f"{what}_p{p}" for what in ("ttft", "itl") for p in (50, 95, 99)]
    for row in rows:
        for name in ("goodput_rps", "gpu_hours", "local_share", *percentiles):
            assert row[name] >= 0
        assert row["goodput_rps"] == pytest.approx(20 / 4.75, rel=1e-3)
    assert output == run(*arguments, *more, "--seed", "3", "--json")


def test_a_table_for_people(trace_file: str) -> None:
    assert "round_robin" in run("--trace", trace_file, "--policy", "round_robin")


def test_model_times_change_the_outcome(trace_file: str, tmp_path: Path) -> None:
    slow = json.loads(H100_8B.to_json())
    slow["prefill_pool"]["prefill"]["per_token_s"] *= 10
    path = tmp_path / "times.json"
    path.write_text(json.dumps(slow))
    arguments = ("--trace", trace_file, "--policy", "always_remote", "--json")
    default = json.loads(run(*arguments))
    slower = json.loads(run(*arguments, "--model-times", str(path)))
    assert slower["ttft_p50"] > 5 * default["ttft_p50"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--policy", "best"), "policy is 'best'"),
        (("--decode", "0"), "decode is 0"),
        (("--rate-scale", "0"), "rate scale"),
        (("--ttft-slo", "0"), "ttft_slo_s"),
        (("--model-times", "nowhere.json"), "nowhere.json"),
    ],
)
def test_wrong_options_are_named(trace_file: str, arguments: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        run("--trace", trace_file, *arguments)
