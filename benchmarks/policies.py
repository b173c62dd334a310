"""Every routing policy on recorded and synthetic traces, at several fleets and loads, simulated.

    python -m benchmarks.policies --mooncake conversation_trace.jsonl \
        --azure AzureLLMInferenceTrace_conv.csv

A seed is another draw of a synthetic mix, and another part of a recorded trace. The traces are
public: `FAST25-release/traces/conversation_trace.jsonl` of kvcache-ai/Mooncake and
`data/AzureLLMInferenceTrace_conv.csv` of Azure/AzurePublicDataset. The knee of a scenario is the
highest load at which `cost` serves 90 % of requests within both SLOs, found to within 5 %; every
policy then runs at `--levels` times that load. Writes one row per run, and for every level the best
fixed rule, how `cost` compares, and its regret against an oracle that knows output lengths: of
goodput summed over seeds, and of the seeds one by one.

A queue that grows needs time to show: of few requests nearly all come before any rule is full.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from baton.router.config import POLICY_NAMES, RouterConfig
from baton.simulator.config import SimConfig
from baton.simulator.request import Trace
from baton.simulator.simulation import ORACLE, simulate
from baton.simulator.trace import read_trace, scaled
from benchmarks.results_file import write_results

OUTPUT = Path(__file__).parent / "results" / "policies_knee.json"
THRESHOLDS = ("threshold", "isl_bounding", "isl_or_load")
KNEE = 0.9

# Trace and fleet, share of the knee's load, rate scale.
Level = tuple[str, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A trace on a fleet. `trace` names a file given on the command line, or is a
    synthetic mix.
    """

    trace: str
    prefill: int
    decode: int
    ttft_slo_s: float
    itl_slo_s: float
    # Where the knee is looked for first.
    near: float


SCENARIOS = tuple(
    Scenario(trace=trace, prefill=prefill, decode=decode, ttft_slo_s=ttft, itl_slo_s=itl, near=near)
    for trace, prefill, decode, ttft, itl, near in (
        ("mooncake", 4, 4, 5, 0.05, 4),
        ("mooncake", 2, 6, 5, 0.05, 4),
        ("mooncake", 6, 2, 5, 0.05, 2),
        ("azure", 1, 3, 1, 0.03, 12),
        ("azure", 2, 2, 1, 0.03, 12),
        ("synthetic:mixed", 2, 2, 3, 0.05, 1.2),
        ("synthetic:agents", 2, 2, 2, 0.05, 1.9),
        ("synthetic:generate", 1, 3, 1, 0.03, 20),
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mooncake", required=True, help="Mooncake's conversation trace")
    parser.add_argument("--azure", required=True, help="Azure's conversation trace")
    parser.add_argument("--requests", type=int, default=1000, help="so many of each trace and seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--levels", default="0.75,1,1.25")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--scenarios", default="", help="their numbers; all if not given")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    files = {"mooncake": options.mooncake, "azure": options.azure}
    numbers = [int(each) for each in options.scenarios.split(",") if each]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for scenario in [SCENARIOS[number] for number in numbers] or SCENARIOS:
            runs = _Runs(pool, scenario, files, options.requests, options.seeds)
            found = knee(runs)
            for level in map(float, options.levels.split(",")):
                policies = (*POLICY_NAMES, ORACLE)
                for row in runs.of([(round(level * found, 4), policy) for policy in policies]):
                    rows.append({"level": level} | row)
    levels = list(compare(rows))
    settings = {
        "requests": options.requests,
        "seeds": options.seeds,
        "levels": options.levels,
        "model": "8B on H100",
    }
    write_results(options.output, levels + rows, settings)
    for level in levels:
        print(summary(level))


@dataclass(frozen=True, slots=True)
class _Runs:
    """Of one scenario, every seed of what is asked."""

    pool: ProcessPoolExecutor
    scenario: Scenario
    files: Mapping[str, str]
    num_requests: int
    num_seeds: int

    def of(self, wanted: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
        """Rows of these loads and policies, in their order."""
        jobs = [
            (self.scenario, scale, policy, self.files, self.num_requests, seed)
            for scale, policy in wanted
            for seed in range(1, self.num_seeds + 1)
        ]
        rows = []
        for row in self.pool.map(run, *zip(*jobs, strict=True)):
            print(
                f"{row['trace']:18} {row['prefill']}+{row['decode']} x{row['rate_scale']:<6} "
                f"{row['policy']:14} {row['seed']} {row['goodput_rps']:7.3f}/s "
                f"{row['attainment']:.3f}",
                flush=True,
            )
            rows.append(row)
        return rows


def knee(runs: _Runs) -> float:
    """By how much the trace is sped up there."""

    def served(scale: float) -> bool:
        rows = runs.of([(scale, "cost")])
        return sum(row["attainment"] for row in rows) >= KNEE * len(rows)

    low = high = runs.scenario.near
    if served(low):
        while served(high := 1.25 * high):
            low = high
    else:
        while not served(low := low / 1.25):
            high = low
    while high > 1.05 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if served(middle) else (low, middle)
    return low


def run(
    scenario: Scenario,
    scale: float,
    policy: str,
    files: Mapping[str, str],
    num_requests: int,
    seed: int,
) -> dict[str, Any]:
    """One simulation as one row."""
    trace = _trace(files.get(scenario.trace, scenario.trace), num_requests, seed)
    config = SimConfig(
        prefill=scenario.prefill,
        decode=scenario.decode,
        seed=seed,
        router=RouterConfig(
            policy="cost" if policy == ORACLE else policy,
            ttft_slo_s=scenario.ttft_slo_s,
            itl_slo_s=scenario.itl_slo_s,
        ),
    )
    outcome = simulate(scaled(trace, scale), config, oracle=policy == ORACLE)
    about = {
        "trace": scenario.trace,
        "seed": seed,
        "prefill": scenario.prefill,
        "decode": scenario.decode,
        "rate_scale": scale,
        "ttft_slo_s": scenario.ttft_slo_s,
        "itl_slo_s": scenario.itl_slo_s,
    }
    return about | outcome.to_dict() | {"policy": policy}


def compare(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per scenario and load: `cost` beside the best fixed rule and the oracle."""
    levels: dict[Level, dict[str, list[float]]] = {}
    shares: dict[Level, list[float]] = {}
    for row in rows:
        fleet = f"{row['trace']} {row['prefill']}+{row['decode']}"
        level = (fleet, row["level"], row["rate_scale"])
        levels.setdefault(level, {}).setdefault(row["policy"], []).append(row["goodput_rps"])
        if row["policy"] == "cost":
            shares.setdefault(level, []).append(row["attainment"])
    for level, goodput in levels.items():
        mean = {name: sum(each) / len(each) for name, each in goodput.items()}
        fixed = {name: value for name, value in mean.items() if name not in ("cost", ORACLE)}
        best = max(fixed, key=lambda name: fixed[name])
        threshold = max(THRESHOLDS, key=lambda name: fixed[name])
        yield {
            "scenario": level[0],
            "of_the_knee": level[1],
            "rate_scale": level[2],
            "cost_rps": round(mean["cost"], 4),
            "cost_attainment": round(sum(shares[level]) / len(shares[level]), 4),
            "best_fixed": best,
            "best_fixed_rps": round(mean[best], 4),
            "best_threshold": threshold,
            **_compared("best_fixed", goodput["cost"], goodput[best]),
            **_compared("best_threshold", goodput["cost"], goodput[threshold]),
            **_compared("round_robin", goodput["cost"], goodput["round_robin"]),
            "regret": round(1 - _ratio(mean["cost"], mean[ORACLE]), 4),
        }


def _compared(name: str, cost: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """`cost` by another: all seeds together, and each."""
    return {
        f"cost_to_{name}": _ratio(sum(cost), sum(other)),
        f"cost_to_{name}_by_seed": [_ratio(*pair) for pair in zip(cost, other, strict=True)],
    }


def summary(level: Mapping[str, Any]) -> str:
    """A level in one line."""
    return (
        f"{level['scenario']:22} {level['of_the_knee']:4g} of the knee, "
        f"x{level['rate_scale']:<7} "
        f"cost {level['cost_rps']:7.3f}/s ({level['cost_attainment']:.1%}), "
        f"{level['cost_to_best_fixed']:.2f} x {level['best_fixed']}, "
        f"{level['cost_to_best_threshold']:.2f} x thresholds, "
        f"{level['cost_to_round_robin']:.2f} x round_robin, regret {level['regret']:.1%}"
    )


@lru_cache(maxsize=16)
def _trace(source: str, num_requests: int, seed: int) -> Trace:
    # Read once per process: a run of the simulator is not much longer.
    trace = read_trace(source, seed=seed)
    if source.startswith("synthetic:"):
        return replace(trace, requests=trace.requests[:num_requests])
    part = trace.requests[(seed - 1) * num_requests : seed * num_requests]
    begin_s = part[0].arrival_s
    return replace(
        trace, requests=tuple(replace(each, arrival_s=each.arrival_s - begin_s) for each in part)
    )


def _ratio(value: float, other: float) -> float:
    return round(value / other, 4) if other else 0.0


if __name__ == "__main__":
    main()
