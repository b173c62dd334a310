from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton.protos.errors import ConfigError
from baton.simulator.mixes import MIXES
from baton.simulator.synthetic import Burst
from baton.simulator.trace import read_trace, scaled

MOONCAKE = (
    '{"timestamp": 27000, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 30000, "input_length": 600, "output_length": 0, "hash_ids": [0, 9]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
)


def written(folder: Path, text: str) -> str:
    path = folder / "trace.txt"
    path.write_text(text)
    return str(path)


def test_mooncake(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, MOONCAKE))
    first, second = found.requests
    assert (first.arrival_s, first.num_prompt_tokens, first.num_output_tokens) == (0.0, 1030, 5)
    # Two full blocks; the third is not full, so no cache can hold it.
    assert len(first.block_hashes) == 2
    assert second.block_hashes == first.block_hashes[:1]
    assert (second.arrival_s, second.num_output_tokens) == (3.0, 1)
    assert scaled(found, 2).requests[1].arrival_s == 1.5


def test_azure(tmp_path: Path) -> None:
    found = read_trace(written(tmp_path, AZURE))
    assert found.requests[1].arrival_s == pytest.approx(4.314579)
    assert found.requests[1].num_prompt_tokens == 396
    assert found.requests[1].num_output_tokens == 109


def test_a_mix_of_ones_own(tmp_path: Path) -> None:
    shape = {"rate": 5, "prompt_tokens": 2000, "output_tokens": 9, "prefix_tokens": 1024}
    burst = {"start_s": 50, "end_s": 100, "factor": 4}
    mix = {"duration_s": 100, "classes": [shape], "bursts": [burst]}
    found = read_trace(written(tmp_path, json.dumps(mix, indent=1)), seed=4)
    early = sum(request.arrival_s < 50 for request in found.requests)
    assert 180 < early < 330
    assert len(found.requests) - early > 3 * early
    assert len({request.block_hashes[:2] for request in found.requests}) == 1
    assert Burst(start_s=0, end_s=9, factor=3, ramp_s=4).factor_at(2) == 2
    assert found == read_trace(written(tmp_path, json.dumps(mix)), seed=4)
    assert found != read_trace(written(tmp_path, json.dumps(mix)), seed=5)


@pytest.mark.parametrize("name", list(MIXES))
def test_built_in_mixes(name: str) -> None:
    found = read_trace(f"synthetic:{name}", seed=1)
    arrivals = [request.arrival_s for request in found.requests]
    assert arrivals == sorted(arrivals)
    for request in found.requests:
        assert len(request.block_hashes) <= request.num_prompt_tokens // 512


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hello\n", "Mooncake"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 3}\n', "line 1.*input_length"),
        (MOONCAKE + '{"timestamp": "x"}\n', "line 3.*timestamp"),
        (MOONCAKE + "{\n", "line 3"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 3, "hash_ids": 4}\n', "hash_ids"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "GeneratedTokens"),
        (AZURE + "yesterday,1,2\n", "line 4"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ('{"classes": []}', "class"),
        ('{"classes": [{"rate": 1, "prompt_tokens": 1, "output_tokens": 1, "x": 1}]}', "'x'"),
        ('{"classes": [{"rate": -1, "prompt_tokens": 1, "output_tokens": 1}]}', "rate"),
    ],
)
def test_wrong_files_are_refused_with_the_place(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        read_trace(written(tmp_path, text))


def test_wrong_names_and_scales(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agents"):
        read_trace("synthetic:nothing")
    with pytest.raises(ConfigError, match="nowhere"):
        read_trace(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="rate scale"):
        scaled(read_trace("synthetic:chat"), 0)
