"""What /metrics says of the places where workers keep KV: their pools, and the tiers below them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from baton.gateway.seam import WorkerView
from baton.protos.types import TierLoad

# name, help, kind, what to read.
_FIGURES: tuple[
    tuple[
        str,
        str,
        type[GaugeMetricFamily] | type[CounterMetricFamily],
        Callable[[TierLoad], float],
    ],
    ...,
] = (
    ("blocks", "KV blocks there now.", GaugeMetricFamily, lambda t: t.num_blocks),
    (
        "max_blocks",
        "KV blocks that fit; 0: no limit of its own.",
        GaugeMetricFamily,
        lambda t: t.max_blocks,
    ),
    (
        "load_seconds_per_token",
        "Time from there to the pool, as measured lately.",
        GaugeMetricFamily,
        lambda t: t.load_s_per_token,
    ),
    (
        "wanted_blocks",
        "Blocks that prompts looked for there.",
        CounterMetricFamily,
        lambda t: t.num_wanted,
    ),
    (
        "hit_blocks",
        "Blocks that were found there, and used.",
        CounterMetricFamily,
        lambda t: t.num_hits,
    ),
    ("stored_blocks", "Blocks that came there.", CounterMetricFamily, lambda t: t.num_stored),
    (
        "dropped_blocks",
        "Blocks that should have come there, but would have had to be waited for.",
        CounterMetricFamily,
        lambda t: t.num_dropped,
    ),
    ("errors", "Calls to the tier that failed.", CounterMetricFamily, lambda t: t.num_errors),
)


def tier_figures(workers: Sequence[WorkerView]) -> Iterable[Metric]:
    """`baton_worker_tier_*`, of workers that keep KV below their pools."""
    for name, help_text, kind, read in _FIGURES:
        family = kind(f"baton_worker_tier_{name}", help_text, labels=["worker", "role", "tier"])
        for worker in workers:
            for tier in worker.load.tiers:
                labels = [worker.member.worker_id, worker.member.role.value, tier.name]
                family.add_metric(labels, read(tier))
        yield family
