"""KV below the pools of a real cluster: found again, by the worker that wrote it and by its
successor, with the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.conftest import Cluster, served
from tests.integration.test_cluster import body, run_alone, token_ids

from baton.protos.types import SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# The prefill worker's pool holds two of the prompts, its host memory three, its disk all.
CONFIG = """
router: {policy: always_remote}
prefill:
  engine:
    num_blocks: 32
    max_step_tokens: 128
    kv_tiers: {cpu_gib: 0.003, disk_path: %s, disk_gib: 0.1}
decode:
  engine: {num_blocks: 32, max_step_tokens: 128, prefix_cache: false}
"""


def disk_hits(cluster: Cluster) -> int:
    (worker,) = cluster.workers("prefill")
    return sum(tier["num_hits"] for tier in worker["load"]["tiers"] if tier["name"] == "disk")


def test_evicted_prefixes_come_back_even_after_a_kill(tmp_path: Path) -> None:
    prompts = [[(7 * number + 3 * i) % 900 + 20 for i in range(200)] for number in range(8)]
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    expected = run_alone(prompts, greedy)
    config = CONFIG % (tmp_path / "kv")
    with served(tmp_path, config, []) as cluster, cluster.client() as client:
        cluster.wait_for(1, 1)

        def answers() -> list[list[int]]:
            # Where the successor's first report is late, the first of them may be local.
            return [
                token_ids(client.post("/v1/completions", json=body(prompt, 8)))
                for prompt in prompts
            ]

        assert answers() == expected
        assert answers() == expected
        assert disk_hits(cluster) > 0
        metrics = client.get("/metrics").text
        assert 'baton_worker_tier_hit_blocks_total{role="prefill",tier="disk"' in metrics
        (first,) = cluster.workers("prefill")
        cluster.kill(first)
        cluster.wait_for(1, 1, gone=frozenset({first["incarnation"]}))
        assert answers() == expected
        assert disk_hits(cluster) > 0
        cluster.wait_all_free()
