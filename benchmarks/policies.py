"""Every routing policy on recorded and synthetic traces, at several fleets and loads, simulated.

    python -m benchmarks.policies --mooncake conversation_trace.jsonl \
        --azure AzureLLMInferenceTrace_conv.csv

A seed is another draw of a synthetic mix, and another part of a recorded trace. The traces are
public: `FAST25-release/traces/conversation_trace.jsonl` of kvcache-ai/Mooncake and
`data/AzureLLMInferenceTrace_conv.csv` of Azure/AzurePublicDataset. Writes one row per run, and for
every level the best fixed rule, how `cost` compares, and its regret against an oracle that knows
output lengths: of goodput summed over seeds, and of the seeds one by one. The knee of a scenario
is the highest load at which `cost` serves 90 % of requests within both SLOs.
"""

from __future__ import annotations

import argparse
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

OUTPUT = Path(__file__).parent / "results" / "policies.json"
THRESHOLDS = ("threshold", "isl_bounding", "isl_or_load")
KNEE = 0.9

# Trace, prefill and decode workers, rate scale.
Level = tuple[str, int, int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A trace on a fleet at several loads. `trace` names a file given on the command line, or is a
    synthetic mix.
    """

    trace: str
    prefill: int
    decode: int
    rate_scales: tuple[float, ...]
    ttft_slo_s: float
    itl_slo_s: float


SCENARIOS = (
    Scenario(
        trace="mooncake",
        prefill=4,
        decode=4,
        rate_scales=(1, 1.5, 2, 2.5, 3, 3.5),
        ttft_slo_s=5,
        itl_slo_s=0.05,
    ),
    Scenario(
        trace="mooncake",
        prefill=2,
        decode=6,
        rate_scales=(1.5, 2.5, 3.5),
        ttft_slo_s=5,
        itl_slo_s=0.05,
    ),
    Scenario(
        trace="mooncake",
        prefill=6,
        decode=2,
        rate_scales=(1.5, 2.5, 3.5),
        ttft_slo_s=5,
        itl_slo_s=0.05,
    ),
    Scenario(
        trace="azure",
        prefill=1,
        decode=3,
        rate_scales=(4, 8, 12, 16),
        ttft_slo_s=1,
        itl_slo_s=0.03,
    ),
    Scenario(
        trace="azure",
        prefill=2,
        decode=2,
        rate_scales=(4, 8, 12, 16),
        ttft_slo_s=1,
        itl_slo_s=0.03,
    ),
    Scenario(
        trace="synthetic:mixed",
        prefill=2,
        decode=2,
        rate_scales=(0.5, 1, 1.5, 2),
        ttft_slo_s=3,
        itl_slo_s=0.05,
    ),
    Scenario(
        trace="synthetic:agents",
        prefill=2,
        decode=2,
        rate_scales=(1, 2, 3, 4),
        ttft_slo_s=2,
        itl_slo_s=0.05,
    ),
    Scenario(
        trace="synthetic:generate",
        prefill=1,
        decode=3,
        rate_scales=(1, 2, 3, 4),
        ttft_slo_s=1,
        itl_slo_s=0.03,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mooncake", required=True, help="Mooncake's conversation trace")
    parser.add_argument("--azure", required=True, help="Azure's conversation trace")
    parser.add_argument("--requests", type=int, default=600, help="so many of each trace and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    files = {"mooncake": options.mooncake, "azure": options.azure}
    jobs = [
        (scenario, scale, policy, files, options.requests, seed)
        for scenario in SCENARIOS
        for scale in scenario.rate_scales
        for policy in (*POLICY_NAMES, ORACLE)
        for seed in range(1, options.seeds + 1)
    ]
    settings = {"requests": options.requests, "seeds": options.seeds, "model": "8B on H100"}
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(run, *zip(*jobs, strict=True)):
            print(
                f"{row['trace']:18} {row['prefill']}+{row['decode']} x{row['rate_scale']:<4} "
                f"{row['policy']:14} {row['seed']} {row['goodput_rps']:7.3f}/s "
                f"{row['attainment']:.3f}",
                flush=True,
            )
            rows.append(row)
    levels = list(compare(rows))
    write_results(options.output, levels + rows, settings)
    for level in levels:
        print(summary(level))


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
        level = (row["trace"], row["prefill"], row["decode"], row["rate_scale"])
        levels.setdefault(level, {}).setdefault(row["policy"], []).append(row["goodput_rps"])
        if row["policy"] == "cost":
            shares.setdefault(level, []).append(row["attainment"])
    share = {level: sum(each) / len(each) for level, each in shares.items()}
    for level, goodput in levels.items():
        mean = {name: sum(each) / len(each) for name, each in goodput.items()}
        fixed = {name: value for name, value in mean.items() if name not in ("cost", ORACLE)}
        best = max(fixed, key=lambda name: fixed[name])
        threshold = max(THRESHOLDS, key=lambda name: fixed[name])
        higher = [other for other in share if other[:3] == level[:3] and other[3] > level[3]]
        knee = share[level] >= KNEE and all(share[other] < KNEE for other in higher)
        yield {
            "level": f"{level[0]} {level[1]}+{level[2]} x{level[3]:g}",
            "cost_rps": round(mean["cost"], 4),
            "cost_attainment": round(share[level], 4),
            "best_fixed": best,
            "best_fixed_rps": round(mean[best], 4),
            "best_threshold": threshold,
            **_compared("best_fixed", goodput["cost"], goodput[best]),
            **_compared("best_threshold", goodput["cost"], goodput[threshold]),
            **_compared("round_robin", goodput["cost"], goodput["round_robin"]),
            "regret": round(1 - _ratio(mean["cost"], mean[ORACLE]), 4),
            "knee": knee,
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
        f"{level['level']:28} cost {level['cost_rps']:7.3f}/s ({level['cost_attainment']:.1%}), "
        f"{level['cost_to_best_fixed']:.2f} x {level['best_fixed']}, "
        f"{level['cost_to_best_threshold']:.2f} x thresholds, "
        f"{level['cost_to_round_robin']:.2f} x round_robin, regret {level['regret']:.1%}"
        f"{'  <- knee' if level['knee'] else ''}"
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
