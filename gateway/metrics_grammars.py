"""What grammars cost the workers, as they report it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from baton.gateway.seam import WorkerView
from baton.protos.types import GrammarCounts

# name, help, what to read.
_COUNTERS: tuple[tuple[str, str, Callable[[GrammarCounts], float]], ...] = (
    ("cache_hits", "Grammars that were compiled already.", lambda g: g.num_hits),
    (
        "compile_seconds",
        "Time that compiling took, refused grammars included, summed.",
        lambda g: g.compile_s,
    ),
    ("masked_rows", "Rows of steps whose tokens a grammar restricted.", lambda g: g.num_masks),
    ("mask_fill_seconds", "Wall time in which masks were filled.", lambda g: g.fill_s),
    (
        "jumped_tokens",
        "Tokens that a grammar left no choice about, so that no step sampled them.",
        lambda g: g.num_jumped_tokens,
    ),
)


def grammar_metrics(workers: Sequence[WorkerView]) -> Iterator[Metric]:
    """The families `baton_worker_grammar...`, for workers that have seen a grammar."""
    found = [
        ([worker.member.worker_id, worker.member.role.value], worker.load.grammars)
        for worker in workers
        if worker.load.grammars is not None
    ]
    names = ["worker", "role"]
    for name, help_text, read in _COUNTERS:
        family = CounterMetricFamily(f"baton_worker_grammar_{name}", help_text, labels=names)
        for labels, counts in found:
            family.add_metric(labels, read(counts))
        yield family
    cached = GaugeMetricFamily(
        "baton_worker_grammars_cached", "Grammars that the worker remembers.", labels=names
    )
    compiled = CounterMetricFamily(
        "baton_worker_grammars_compiled",
        "Grammars compiled, by the backend that was picked.",
        labels=[*names, "backend"],
    )
    refused = CounterMetricFamily(
        "baton_worker_grammars_refused", "Grammars refused, by reason.", labels=[*names, "reason"]
    )
    for labels, counts in found:
        cached.add_metric(labels, counts.num_cached)
        for backend, count in counts.compiled.items():
            compiled.add_metric([*labels, backend], count)
        for reason, count in counts.refused.items():
            refused.add_metric([*labels, reason], count)
    yield from (cached, compiled, refused)
