"""A decode worker of two ranks, with other blocks than the prefill worker's, on a real Ray: same
tokens, replaced as a whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest
from tests.integration.conftest import Cluster, served
from tests.integration.test_cluster import EXPLAIN, body, make_prompts, run_alone, token_ids

from baton.protos.types import SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CONFIG = """
prefill:
  engine: {num_blocks: 1024, max_step_tokens: 128}
router: {policy: always_remote}
decode:
  engine: {tensor_parallel_size: 2, block_size: 24, num_blocks: 1024, max_step_tokens: 128}
"""


def rank_actors(cluster: Cluster) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(cluster.process.pid).children(recursive=True)
        if "ray::RankActor" in " ".join(process.cmdline())
    ]


def check_next_turn(client: httpx.Client) -> None:
    """What was computed where it was decoded is fetched from there."""
    first = [20 + i % 700 for i in range(240)]
    # For these, every prompt token is computed by the decode worker.
    local = client.post("/v1/completions", headers=EXPLAIN, json=body(first, 8, prompt_logprobs=0))
    assert "prefill=local" in local.headers["x-baton-plan"]
    both = [*first, *token_ids(local), *range(50, 80)]
    # Until the gateway has heard what is cached.
    time.sleep(2.0)
    answer = client.post("/v1/completions", headers=EXPLAIN, json=body(both, 8))
    assert " pull_from=decode" in answer.headers["x-baton-plan"]
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    assert [token_ids(answer)] == run_alone([both], sampling)
    assert 'baton_worker_pulled_tokens_total{role="prefill"' in client.get("/metrics").text


def test_two_ranks_answer_and_are_replaced_together(tmp_path: Path) -> None:
    prompts = make_prompts(3, seed=3)
    expected = run_alone(prompts, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    with served(tmp_path, CONFIG, []) as cluster:
        cluster.wait_for(1, 1)
        (first,) = cluster.workers("decode")
        with cluster.client() as client:

            def answers() -> list[list[int]]:
                found = [
                    client.post("/v1/completions", headers=EXPLAIN, json=body(prompt, 8))
                    for prompt in prompts
                ]
                assert all("prefill=local" not in a.headers["x-baton-plan"] for a in found)
                return [token_ids(answer) for answer in found]

            assert answers() == expected
            check_next_turn(client)
            (rank,) = rank_actors(cluster)
            os.kill(rank.pid, signal.SIGKILL)
            cluster.wait_for(1, 1, gone=frozenset({first["incarnation"]}))
            assert answers() == expected
        (successor,) = rank_actors(cluster)
        assert successor.pid != rank.pid
