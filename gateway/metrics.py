"""What /metrics says, in a registry of its own. Per-token figures are plain additions, read at
scrape time.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from baton.gateway.adapter_metrics import adapter_metrics
from baton.gateway.adapters import AdapterTable
from baton.gateway.metrics_grammars import grammar_metrics
from baton.gateway.metrics_tiers import tier_figures
from baton.gateway.seam import Fleet, Plan, WorkerView
from baton.protos.clock import Clock
from baton.protos.errors import BatonError, CancelledError
from baton.protos.worker_pb2 import Done
from baton.router.admission import TenantStatistics
from baton.router.tickets import Refusal

_TTFT_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_ITL_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_E2E_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_WORK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

# name, help, what to read.
_WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("running", "Requests in the worker's batch.", lambda w: w.load.num_running),
    ("waiting", "Requests in the worker's queue.", lambda w: w.load.num_waiting),
    (
        "queued_prefill_tokens",
        "Prompt tokens that wait to be computed.",
        lambda w: w.load.queued_prefill_tokens,
    ),
    ("kv_blocks", "KV blocks of the worker's pool.", lambda w: w.load.total_blocks),
    ("kv_free_blocks", "KV blocks free or evictable.", lambda w: w.load.free_blocks),
    ("report_age_seconds", "Age of the worker's last report.", lambda w: w.age_s),
    (
        "unreported_requests",
        "Requests sent there since its last report.",
        lambda w: w.in_flight_requests,
    ),
)

_WORKER_COUNTERS: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("preemptions", "Requests sent back to the queue.", lambda w: w.load.num_preemptions),
    ("pushed_bytes", "KV written to other workers.", lambda w: w.load.num_pushed_bytes),
    (
        "pulled_tokens",
        "Prompt tokens whose KV came from another worker's prefix cache.",
        lambda w: w.load.num_pulled_tokens,
    ),
    (
        "failed_pulls",
        "Prefixes that were to come from another worker's cache, but were computed.",
        lambda w: w.load.num_failed_pulls,
    ),
)

_TENANT_FIGURES: tuple[
    tuple[
        str,
        str,
        type[GaugeMetricFamily] | type[CounterMetricFamily],
        Callable[[TenantStatistics], float],
    ],
    ...,
] = (
    ("waiting", "Requests that wait in the gateway.", GaugeMetricFamily, lambda t: t.num_waiting),
    ("running", "Requests sent to workers.", GaugeMetricFamily, lambda t: t.num_running),
    ("started", "Requests that were sent.", CounterMetricFamily, lambda t: t.num_started),
    (
        "wait_seconds",
        "Time that requests waited in the gateway before they were sent, summed.",
        CounterMetricFamily,
        lambda t: t.wait_s,
    ),
    (
        "served_tokens",
        "Prompt tokens computed, and output tokens at their price: what shares are counted in.",
        CounterMetricFamily,
        lambda t: t.served,
    ),
)


class Histogram:
    """A histogram whose `observe` costs less than a microsecond: one event loop writes it, scrapes
    read it.
    """

    __slots__ = ("_bounds", "_counts", "_help", "_name", "_sum")

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help_text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> HistogramMetricFamily:
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        return HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum)


class Metrics:
    """Every figure of one gateway."""

    def __init__(self, fleet: Fleet, in_flight: Callable[[], int], adapters: AdapterTable) -> None:
        self._fleet = fleet
        self._adapters = adapters
        self._in_flight = in_flight
        # The replicas that each pool should have, where somebody knows.
        self.targets: Callable[[], Mapping[str, int]] = dict
        self.ttft_s = Histogram("baton_ttft_seconds", "Request received to first token.", _TTFT_S)
        self.itl_s = Histogram("baton_itl_seconds", "Between tokens of one sequence.", _ITL_S)
        self.e2e_s = Histogram(
            "baton_e2e_seconds", "Request received to its answer complete.", _E2E_S
        )
        self.queue_s = Histogram(
            "baton_queue_seconds", "Waiting at the worker that computes the prompt.", _WORK_S
        )
        self.prefill_s = Histogram("baton_prefill_seconds", "Computing the prompt.", _WORK_S)
        self.transfer_s = Histogram(
            "baton_transfer_seconds", "Remote prompts: first token to all KV arrived.", _WORK_S
        )
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_fallbacks = 0
        self.num_generated_tokens = 0
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "baton_requests",
            "Requests of clients by how they ended: ok, or an error code.",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self._plans = Counter(
            "baton_plans",
            "Plans by kind (local or remote prefill) and reason.",
            ["kind", "reason"],
            registry=self._registry,
        )
        self._registry.register(self)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """Everything that `render` writes."""
        return self._registry.collect()

    def planned(self, plan: Plan) -> None:
        kind = "remote" if plan.prefill else "local"
        self._plans.labels(kind, plan.reason).inc()

    def served(self, done: Done | None) -> None:
        """What the worker says of one sequence; None where it was cut off before that."""
        if done is None:
            return
        self.num_cached_tokens += done.num_cached_tokens
        self.num_fallbacks += bool(done.fallback_reason)
        self.queue_s.observe(done.queue_s)
        self.prefill_s.observe(done.prefill_s)
        if done.prefilled_by:
            self.transfer_s.observe(done.transfer_s)

    @contextlib.contextmanager
    def request(self, endpoint: str) -> Iterator[None]:
        """Counts one request by how the block ends."""
        outcome = "internal_error"
        try:
            yield
            outcome = "ok"
        except BatonError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = CancelledError.default_code
            raise
        finally:
            self._requests.labels(endpoint, outcome).inc()

    def collect(self) -> Iterable[Metric]:
        """The registry asks for these at each scrape."""
        for histogram in (
            self.ttft_s,
            self.itl_s,
            self.e2e_s,
            self.queue_s,
            self.prefill_s,
            self.transfer_s,
        ):
            yield histogram.collect()
        yield CounterMetricFamily(
            "baton_prompt_tokens", "Prompt tokens of answered requests.", self.num_prompt_tokens
        )
        yield CounterMetricFamily(
            "baton_generated_tokens", "Tokens received from workers.", self.num_generated_tokens
        )
        yield CounterMetricFamily(
            "baton_cached_prompt_tokens",
            "Prompt tokens that a worker's prefix cache or tiers had, of completed sequences.",
            self.num_cached_tokens,
        )
        yield CounterMetricFamily(
            "baton_prefill_fallbacks",
            "Sequences whose remote prefill failed, so that it was done elsewhere.",
            self.num_fallbacks,
        )
        yield GaugeMetricFamily(
            "baton_requests_in_flight", "Requests being served.", self._in_flight()
        )
        targets = GaugeMetricFamily(
            "baton_pool_target_replicas", "Replicas that autoscaling asks for.", labels=["pool"]
        )
        for pool, target in self.targets().items():
            targets.add_metric([pool], target)
        yield targets
        yield from self._worker_gauges()
        yield from tier_figures(self._fleet.workers())
        yield from grammar_metrics(self._fleet.workers())
        yield from self._fleet_gauges()
        yield from self._tenant_figures()
        yield from adapter_metrics(self._adapters, self._fleet.adapters())

    def describe(self) -> Iterable[Metric]:
        """Nothing up front: names are known without asking the fleet."""
        return ()

    def _worker_gauges(self) -> Iterable[Metric]:
        workers = self._fleet.workers()
        for name, help_text, read in _WORKER_GAUGES:
            family = GaugeMetricFamily(f"baton_worker_{name}", help_text, labels=["worker", "role"])
            for worker in workers:
                labels = [worker.member.worker_id, worker.member.role.value]
                family.add_metric(labels, read(worker))
            yield family
        for name, help_text, read in _WORKER_COUNTERS:
            counter = CounterMetricFamily(
                f"baton_worker_{name}", help_text, labels=["worker", "role"]
            )
            for worker in workers:
                labels = [worker.member.worker_id, worker.member.role.value]
                counter.add_metric(labels, read(worker))
            yield counter

    def _tenant_figures(self) -> Iterable[Metric]:
        tenants = self._fleet.tenants()
        for name, help_text, kind, read in _TENANT_FIGURES:
            family = kind(f"baton_tenant_{name}", help_text, labels=["tenant"])
            for tenant in tenants:
                family.add_metric([tenant.name], read(tenant))
            yield family
        refused = CounterMetricFamily(
            "baton_tenant_refused", "Requests refused, by reason.", labels=["tenant", "reason"]
        )
        for tenant in tenants:
            for reason in Refusal:
                count = tenant.refused.get(reason, 0)
                refused.add_metric([tenant.name, reason.value], count)
        yield refused

    def _fleet_gauges(self) -> Iterable[Metric]:
        found = self._fleet.planner.figures(self._fleet.workers())
        for name, figures in itertools.groupby(found, key=lambda figure: figure.name):
            first, *rest = figures
            labels = [label for label, _ in first.labels]
            family = GaugeMetricFamily(f"baton_{name}", first.help_text, labels=labels)
            for figure in (first, *rest):
                family.add_metric([value for _, value in figure.labels], figure.value)
            yield family


class ChoiceMeter:
    """Times one sequence's tokens. Only a request's first sequence has a time to first token."""

    __slots__ = ("_clock", "_first", "_last_s", "_metrics", "_received_s")

    def __init__(self, metrics: Metrics, clock: Clock, received_s: float, *, first: bool) -> None:
        self._metrics = metrics
        self._clock = clock
        self._received_s = received_s
        self._first = first
        self._last_s: float | None = None

    def __call__(self, num_tokens: int) -> None:
        now_s = self._clock.now_s()
        if self._last_s is None:
            if self._first:
                self._metrics.ttft_s.observe(now_s - self._received_s)
        elif num_tokens:
            self._metrics.itl_s.observe((now_s - self._last_s) / num_tokens, num_tokens)
        self._last_s = now_s
        self._metrics.num_generated_tokens += num_tokens
