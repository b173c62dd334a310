"""Gateways' figures at one time, and what happened between two times."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from baton.cluster.client import Endpoint, get_text, read_workers
from baton.protos.errors import UnavailableError

# A sample's name and labels.
Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`/metrics` and `/baton/workers` as they were at `at_s` of the monotonic clock, of one gateway
    or several: each sample has the label `gateway`, the URL that was asked.
    """

    at_s: float
    samples: Mapping[Key, float]
    workers: Sequence[Mapping[str, Any]]

    def total(self, name: str, **labels: str) -> float:
        """Sum of all samples of a name that have these labels; 0 without any."""
        wanted = labels.items()
        return sum(
            value
            for (found, has), value in self.samples.items()
            if found == name and wanted <= dict(has).items()
        )

    def largest(self, name: str, **labels: str) -> float | None:
        """What gateways that were told the same agree on; None without any such sample."""
        wanted = labels.items()
        return max(
            (
                value
                for (found, has), value in self.samples.items()
                if found == name and wanted <= dict(has).items()
            ),
            default=None,
        )

    def values(self, name: str, label: str) -> list[str]:
        """The values of a label of a name, sorted."""
        found = {dict(has).get(label, "") for sample, has in self.samples if sample == name}
        return sorted(found)

    def since(self, before: Reading) -> Reading:
        """What was counted since `before`. A counter that fell began anew: its gateway restarted.

        For counters and histograms only: of a gauge the difference says nothing.
        """
        samples = {
            key: value - before.samples.get(key, 0.0)
            if value >= before.samples.get(key, 0.0)
            else value
            for key, value in self.samples.items()
        }
        return Reading(at_s=self.at_s, samples=samples, workers=self.workers)

    def quantile(self, name: str, part: float) -> float | None:
        """About the time that `part` of a histogram's observations stayed under; None without any.

        Within a bucket they are taken to be spread evenly, as PromQL's histogram_quantile does; of
        those above the last bound only that bound is known.
        """
        counts: dict[float, float] = defaultdict(float)
        for (found, has), count in self.samples.items():
            if found == f"{name}_bucket":
                le = dict(has)["le"]
                counts[math.inf if le == "+Inf" else float(le)] += count
        buckets = sorted(counts.items())
        if not buckets or not buckets[-1][1]:
            return None
        rank = part * buckets[-1][1]
        low, below = 0.0, 0.0
        for bound, count in buckets:
            if count >= rank and count > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (rank - below) / (count - below)
            low, below = bound, count
        return low


def read(endpoints: Sequence[Endpoint]) -> Reading:
    """Asks gateways of one cluster, one after the other. Raises BatonError."""
    workers: dict[str, Mapping[str, Any]] = {}
    samples: dict[Key, float] = {}
    for endpoint in endpoints:
        # Each knows all workers; those that only one knows are on their way.
        workers |= {worker["worker_id"]: worker for worker in read_workers(endpoint)}
        samples |= parse(get_text(endpoint, "/metrics"), endpoint.base)
    return Reading(at_s=time.monotonic(), samples=samples, workers=list(workers.values()))


def parse(text: str, gateway: str) -> dict[Key, float]:
    """Samples of Prometheus' text format. Raises UnavailableError for anything else."""
    try:
        return {
            (sample.name, _labels(sample.labels, gateway)): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except (ValueError, KeyError, IndexError) as error:
        raise UnavailableError(f"/metrics cannot be read: {error}") from error


def _labels(labels: Mapping[str, str], gateway: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({**labels, "gateway": gateway}.items()))
