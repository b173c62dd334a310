"""A decode worker of two ranks, with other blocks than the prefill worker's, on a real Ray: same
tokens, replaced as a whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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
            (rank,) = rank_actors(cluster)
            os.kill(rank.pid, signal.SIGKILL)
            cluster.wait_for(1, 1, gone=frozenset({first["incarnation"]}))
            assert answers() == expected
        (successor,) = rank_actors(cluster)
        assert successor.pid != rank.pid
