"""How much do several gateways lose against one, each with its own late view of the workers?

The simulator's workers, the real router. Every gateway plans on what the workers reported `delay_s`
ago, plus what it sent itself since: that is all that gateways ever tell each other. `delay_s` of a
few milliseconds is what workers that report each submission give, half a second what they gave
when they reported after steps and on a timer.

Run `python -m benchmarks.many_gateways --out benchmarks/results/many_gateways.json` (a minute).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from baton.router.plan import Plan, RouteRequest, plan
from baton.router.view import ClusterView, WorkerView
from baton.simulator.config import SimConfig
from baton.simulator.job import Job
from baton.simulator.request import Trace
from baton.simulator.simulation import Simulation
from baton.simulator.synthetic import Mix, RequestClass, synthesize
from benchmarks.results_file import write_results

# Shared prefixes, so that hits can be lost, and enough work that balance matters.
MIX: Final = Mix(
    duration_s=90.0,
    classes=(
        RequestClass(
            rate=30.0,
            prompt_tokens=5_000,
            prompt_sigma=0.8,
            output_tokens=100,
            output_sigma=0.6,
            prefix_tokens=4_096,
            num_prefixes=40,
        ),
    ),
)
PREFILL, DECODE = 8, 4


@dataclass(slots=True)
class Sent:
    """One request that a gateway sent, and when."""

    at_s: float
    prefill: str
    decode: str
    num_tokens: int


@dataclass(slots=True)
class GatewayView:
    """What one gateway knows beside the workers' reports."""

    rng: random.Random
    sent: deque[Sent] = field(default_factory=deque)


class ManyGateways(Simulation):
    """A simulation in which requests reach gateways in turn, and reports reach gateways late."""

    def __init__(
        self, trace: Trace, config: SimConfig, *, num_gateways: int, delay_s: float
    ) -> None:
        super().__init__(trace, config)
        seeds = random.Random(config.seed)
        self._gateways = [
            GatewayView(random.Random(seeds.randrange(1 << 30))) for _ in range(num_gateways)
        ]
        self._delay_s = delay_s
        self._reports: deque[tuple[float, ClusterView]] = deque()

    def _plan(self, job: Job) -> Plan:
        request = job.request
        gateway = self._gateways[request.index % len(self._gateways)]
        reported_s, reports = self._late_reports()
        while gateway.sent and gateway.sent[0].at_s <= reported_s:
            gateway.sent.popleft()
        route = RouteRequest(
            request_id=str(request.index),
            num_prompt_tokens=job.num_known,
            block_hashes=request.block_hashes,
            block_size=self._trace.block_tokens,
            max_tokens=self._config.max_tokens,
            sequence=request.index,
        )
        view = with_sent(reports, gateway.sent)
        chosen = plan(view, self.fleet.index, route, self._config.router, gateway.rng)
        computes = chosen.prefill[0] if chosen.prefill else chosen.decode
        gateway.sent.append(
            Sent(
                self.events.now,
                computes.worker_id,
                chosen.decode.worker_id,
                max(1, job.num_known - chosen.num_cached_tokens),
            )
        )
        return chosen

    def _late_reports(self) -> tuple[float, ClusterView]:
        now_s = self.events.now
        self._reports.append((now_s, self.fleet.view()))
        while len(self._reports) > 1 and self._reports[1][0] <= now_s - self._delay_s:
            self._reports.popleft()
        return self._reports[0]


def with_sent(view: ClusterView, sent: deque[Sent]) -> ClusterView:
    """The reports, and what this gateway sent since."""
    tokens: dict[str, int] = defaultdict(int)
    requests: dict[str, int] = defaultdict(int)
    for entry in sent:
        tokens[entry.prefill] += entry.num_tokens
        for worker_id in {entry.prefill, entry.decode}:
            requests[worker_id] += 1

    def added(worker: WorkerView) -> WorkerView:
        worker_id = worker.member.worker_id
        if worker_id not in requests:
            return worker
        return dataclasses.replace(
            worker, in_flight_tokens=tokens[worker_id], in_flight_requests=requests[worker_id]
        )

    return dataclasses.replace(
        view, decode=tuple(map(added, view.decode)), prefill=tuple(map(added, view.prefill))
    )


def imbalance(jobs: list[Job], *, prompts: bool, window_s: float = 10.0) -> float:
    """Max over mean of the tokens that workers were given, mean over windows: prompt tokens to
    compute by whoever computed them, or output tokens by decode worker.
    """
    windows: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for job in jobs:
        worker = job.decode if job.local or not prompts else job.prefill
        if worker is None:
            continue
        given = job.request.num_prompt_tokens - job.num_cached
        window = windows[int(job.request.arrival_s // window_s)]
        window[worker.member.worker_id] += given if prompts else job.request.num_output_tokens
    # The last window is cut off by the trace's end.
    whole = [windows[key] for key in sorted(windows)[:-1]]
    size = len({worker_id for window in whole for worker_id in window})
    return statistics.fmean(max(w.values()) / (sum(w.values()) / size) for w in whole)


def measure(trace: Trace, num_gateways: int, delay_s: float, seed: int) -> dict[str, Any]:
    """One run's figures."""
    config = SimConfig(prefill=PREFILL, decode=DECODE, seed=seed)
    run = ManyGateways(trace, config, num_gateways=num_gateways, delay_s=delay_s)
    outcome = run.run()
    return {
        "gateways": num_gateways,
        "delay_s": delay_s,
        "seed": seed,
        "prompt_imbalance": round(imbalance(run.jobs, prompts=True), 4),
        "decode_imbalance": round(imbalance(run.jobs, prompts=False), 4),
        "local_share": round(outcome.local_share, 4),
        "cached_share": round(outcome.cached_share, 4),
        "ttft_mean": outcome.ttft_mean,
        "ttft_p99": outcome.ttft_p99,
        "goodput_rps": round(outcome.goodput_rps, 3),
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several gateways over one, by delay: means over seeds, as ratios."""
    found = []
    for key in sorted({(row["gateways"], row["delay_s"]) for row in rows if row["gateways"] > 1}):
        many = [r for r in rows if (r["gateways"], r["delay_s"]) == key]
        one = [r for r in rows if (r["gateways"], r["delay_s"]) == (1, key[1])]
        ratios = {
            name: round(
                statistics.fmean(r[name] for r in many) / statistics.fmean(r[name] for r in one), 4
            )
            for name in ("prompt_imbalance", "decode_imbalance", "cached_share", "ttft_mean")
        }
        found.append({"gateways": key[0], "delay_s": key[1], "over_one_gateway": ratios})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = [
        measure(synthesize("many_gateways", MIX, seed), gateways, delay_s, seed)
        for seed in range(options.seeds)
        for delay_s in (0.002, 0.5)
        for gateways in (1, 4)
    ]
    ratios = compare(rows)
    for row in [*rows, *ratios]:
        print(row)
    if options.out:
        settings = {"prefill": PREFILL, "decode": DECODE, "mix": dataclasses.asdict(MIX)}
        write_results(options.out, rows + ratios, settings)


if __name__ == "__main__":
    main()
