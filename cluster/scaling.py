"""How many replicas a pool should have: a pure rule, and its adapter to Ray Serve's policy
interface.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# A pool is right-sized when its replicas are this busy on average.
TARGET_BUSY = 0.7
# Prompt tokens that wait this many seconds count as one whole busy replica.
TOLERATED_WAIT_S = 1.0


def busy(stats: Mapping[str, float]) -> float:
    """How busy one replica is, 1.0 is full: the larger of KV use and its prompts' waiting time."""
    rate = stats.get("prefill_tokens_per_s", 0.0)
    queued = stats.get("queued_prefill_tokens", 0.0)
    # A rate that is not measured yet says nothing; work that waits nevertheless counts.
    wait_s = queued / rate if rate > 0 else float(queued > 0)
    return max(stats.get("kv_use", 0.0), wait_s / TOLERATED_WAIT_S)


def wanted_replicas(current: int, replicas: Sequence[Mapping[str, float]]) -> int:
    """The number of replicas at which these would be `TARGET_BUSY`. Replicas that report nothing
    yet are idle.

    At most twice the current number at a time, so that one odd report cannot flood a cluster.
    """
    if not replicas:
        return current
    total = sum(busy(stats) for stats in replicas)
    return max(1, min(2 * max(1, current), math.ceil(total / TARGET_BUSY)))


def scale_pool(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's policy signature; Serve itself applies bounds and delays afterwards."""
    by_replica: dict[Any, dict[str, float]] = {}
    for name, values in (context.aggregated_metrics or {}).items():
        for replica_id, value in values.items():
            by_replica.setdefault(replica_id, {})[name] = value
    return wanted_replicas(context.current_num_replicas, list(by_replica.values())), {}
