"""What /metrics says of adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from baton.gateway.adapters import AdapterTable
from baton.protos.adapters import AdapterLoad
from baton.protos.types import Member

# name, help, kind, what to read.
_WORKER_FIGURES: tuple[
    tuple[
        str,
        str,
        type[GaugeMetricFamily] | type[CounterMetricFamily],
        Callable[[AdapterLoad], float],
    ],
    ...,
] = (
    ("resident", "Adapters on the device.", GaugeMetricFamily, lambda a: len(a.resident)),
    ("loaded", "Adapters in CPU memory.", GaugeMetricFamily, lambda a: a.num_loaded),
    ("loads", "Adapters read into CPU memory.", CounterMetricFamily, lambda a: a.num_loads),
    ("load_seconds", "Time that reading took, summed.", CounterMetricFamily, lambda a: a.load_s),
    ("copies", "Adapters copied to the device.", CounterMetricFamily, lambda a: a.num_copies),
    ("copy_seconds", "Time that copying took, summed.", CounterMetricFamily, lambda a: a.copy_s),
    (
        "evictions",
        "Copies that took the place of another adapter.",
        CounterMetricFamily,
        lambda a: a.num_evictions,
    ),
    (
        "hits",
        "Requests that found their adapter on the device.",
        CounterMetricFamily,
        lambda a: a.num_hits,
    ),
)


def adapter_metrics(
    table: AdapterTable, workers: Sequence[tuple[Member, AdapterLoad]]
) -> Iterator[Metric]:
    """This gateway's requests by name, and each worker's memory and rows. Nothing where no adapter
    can be served.
    """
    figures = table.figures()
    if not figures and not workers:
        return
    active = GaugeMetricFamily(
        "baton_adapter_requests_active",
        "Requests that wait or run.",
        labels=["adapter"],
    )
    total = CounterMetricFamily(
        "baton_adapter_requests", "Requests that named an adapter.", labels=["adapter"]
    )
    for adapter in figures:
        active.add_metric([adapter.name], adapter.num_active)
        total.add_metric([adapter.name], adapter.num_requests)
    yield from (active, total)
    for name, help_text, kind, read in _WORKER_FIGURES:
        family = kind(f"baton_worker_adapter_{name}", help_text, labels=["worker", "role"])
        for member, load in workers:
            family.add_metric([member.worker_id, member.role.value], read(load))
        yield family
    yield _rows(table, workers)


def _rows(table: AdapterTable, workers: Sequence[tuple[Member, AdapterLoad]]) -> Metric:
    names = {ref.adapter_id: ref.name for ref in table.adapters.values()}
    rows = GaugeMetricFamily(
        "baton_worker_adapter_rows",
        "Rows of the worker's batch that use an adapter; unloaded ones go by their id.",
        labels=["worker", "role", "adapter"],
    )
    for member, load in workers:
        for adapter_id, num_rows in zip(load.resident, load.num_rows, strict=True):
            name = names.get(adapter_id, adapter_id)
            rows.add_metric([member.worker_id, member.role.value, name], num_rows)
    return rows
