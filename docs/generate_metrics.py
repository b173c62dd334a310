"""Writes docs/metrics.md from a gateway that has seen one of everything:
`python docs/generate_metrics.py`.
"""

# The page's own lines are as long as those of the other pages.
# ruff: noqa: E501

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.core import Metric

from baton.gateway.adapters import AdapterTable
from baton.gateway.fleet_config import FleetConfig
from baton.gateway.fleet_planner import Planner
from baton.gateway.metrics import Metrics
from baton.protos.adapters import AdapterLoad, AdapterRef
from baton.protos.clock import SystemClock
from baton.protos.types import GrammarCounts, Member, Role, StepSample, TierLoad, WorkerLoad
from baton.router.config import RouterConfig
from baton.router.tickets import Refusal, TenantStatistics
from baton.router.view import WorkerView

TARGET = Path(__file__).parent / "metrics.md"
ADAPTER = AdapterRef(name="a", adapter_id="0", path="/a", rank=8)

HEAD = """# Metrics

<!-- Made by docs/generate_metrics.py from what a gateway exposes; change the metrics there. -->

Every gateway answers `GET /metrics` on its HTTP port, without a key. What workers measure travels to gateways with their load reports: nobody
scrapes a worker for it. With several gateways, sum `baton_requests`, `baton_plans`, tokens, times and tenants over them; of what a
worker says (`baton_worker_*`, `baton_model_*`) every gateway has a copy: take the `max` by `worker`. Counters end in `_total` and begin
anew with their process.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
"""

TAIL = """
## Labels
| label | values |
| --- | --- |
| `endpoint` | the routes of [gateway.md](gateway.md) that clients use, with `{id}` for names in paths, and the methods of the gRPC service; probes, scrapes and `/baton/...` are not counted |
| `outcome` | `ok`, or a code of the error tree |
| `kind` | of plans: `local`, `remote`; of models: `prefill`, `decode`; of KV events: `gap`, `divergence` |
| `reason` | of plans: the router's words ([router.md](router.md)); of tenants: %(refusals)s; of grammars: [structured output](structured_output.md) |
| `worker`, `role` | workers that the directory lists now; those that left are left out |
| `adapter` | adapters that are loaded, while a request uses one also those that were |
| `tier` | the places that workers keep KV in, such as `pool`, `cpu`, `disk` |
| `tenant` | configured ones, and `everybody` |
| `pool` | `prefill`, `decode`; those that are autoscaled |
| `backend` | `xgrammar`, `guidance` |

No label holds what a client wrote.

## Through Ray
Ray's own endpoint on each node has `ray_baton_pool_target_replicas{pool}`, the same targets where they are decided, beside Ray's and
Serve's own metrics.
"""


class _Plan:
    prefill: Sequence[Member] = ()
    reason = "always_local"

    def header(self) -> str:
        return self.reason


class _SeenEverything:
    """A fleet of one worker that has reported every figure, and one tenant."""

    def __init__(self) -> None:
        member = Member(worker_id="d0", incarnation="1", role=Role.DECODE, address="h:1", model="m")
        load = WorkerLoad(
            steps=(StepSample(0, 0, 1, 10, 0.01),),
            tiers=(TierLoad("pool", 1, 1, 1, 1, 1, 0, 0, 0.0),),
            grammars=GrammarCounts(compiled={"xgrammar": 1}, refused={"invalid": 1}),
        )
        self._workers = [WorkerView(member, load, 0.1)]
        self.planner = Planner(RouterConfig(), FleetConfig(), SystemClock(), random.Random(0))
        self.planner.models.observe("d0", Role.DECODE, load)
        self.planner.audit.gap("d0")

    def workers(self) -> list[WorkerView]:
        return self._workers

    def adapters(self) -> list[tuple[Member, AdapterLoad]]:
        load = AdapterLoad(resident=(ADAPTER.adapter_id,), num_rows=(1,))
        return [(self._workers[0].member, load)]

    def tenants(self) -> list[TenantStatistics]:
        refused = dict.fromkeys(Refusal, 1)
        everybody = TenantStatistics(
            name="everybody",
            num_waiting=0,
            num_running=0,
            num_started=0,
            wait_s=0.0,
            served=0.0,
            refused=refused,
        )
        return [everybody]


def families() -> Iterator[Metric]:
    """Every family, each with a sample."""
    adapters = AdapterTable()
    adapters.replace(1, [ADAPTER])
    with adapters.using(ADAPTER.name):
        metrics = Metrics(_SeenEverything(), lambda: 0, adapters)
    metrics.targets = lambda: {"decode": 1}
    metrics.planned(_Plan())
    with metrics.request("/v1/completions"):
        pass
    yield from metrics.families()


def document() -> str:
    """The whole page."""
    rows = [_row(family) for family in sorted(families(), key=lambda family: family.name)]
    refusals = ", ".join(f"`{refusal.value}`" for refusal in Refusal)
    return HEAD + "\n".join(rows) + "\n" + TAIL % {"refusals": refusals}


def _row(family: Metric) -> str:
    names = {label for sample in family.samples for label in sample.labels if label != "le"}
    labels = ", ".join(f"`{name}`" for name in sorted(names))
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
