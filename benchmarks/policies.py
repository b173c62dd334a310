"""Every routing policy on recorded and synthetic traces, at several fleets and loads, simulated.

    python -m benchmarks.policies --mooncake conversation_trace.jsonl \
        --azure AzureLLMInferenceTrace_conv.csv

The traces are public: `FAST25-release/traces/conversation_trace.jsonl` of kvcache-ai/Mooncake and
`data/AzureLLMInferenceTrace_conv.csv` of Azure/AzurePublicDataset. Writes one row per run, and for
every level the best fixed rule, how `cost` compares, and its regret against an oracle that knows
output lengths. The knee of a scenario is the highest load at which `cost` serves 90 % of requests
within both SLOs.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument(
        "--requests", type=int, default=2000, help="so many of each trace's first; 0: all"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--only", help="policies, comma-separated; the output file's rows of others are kept"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    files = {"mooncake": options.mooncake, "azure": options.azure}
    jobs = [
        (scenario, scale, policy, files, options.requests, options.seed)
        for scenario in SCENARIOS
        for scale in scenario.rate_scales
        for policy in (options.only.split(",") if options.only else (*POLICY_NAMES, ORACLE))
    ]
    settings = {"requests": options.requests, "seed": options.seed, "model": "8B on H100"}
    rows: list[dict[str, Any]] = []
    if options.only:
        before = json.loads(options.output.read_text(encoding="utf-8"))
        rows = [r for r in before["rows"] if r.get("policy", options.only) not in options.only]
        settings["rows_of_other_policies_as_of"] = before["commit"]
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(run, *zip(*jobs, strict=True)):
            print(
                f"{row['trace']:18} {row['prefill']}+{row['decode']} x{row['rate_scale']:<4} "
                f"{row['policy']:14} {row['goodput_rps']:7.3f}/s {row['attainment']:.3f}",
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
        "prefill": scenario.prefill,
        "decode": scenario.decode,
        "rate_scale": scale,
        "ttft_slo_s": scenario.ttft_slo_s,
        "itl_slo_s": scenario.itl_slo_s,
    }
    return about | outcome.to_dict() | {"policy": policy}


def compare(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per scenario and load: `cost` beside the best fixed rule and the oracle."""
    levels: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["trace"], row["prefill"], row["decode"], row["rate_scale"])
        levels.setdefault(key, {})[row["policy"]] = row["goodput_rps"]
    shares = {
        (row["trace"], row["prefill"], row["decode"], row["rate_scale"]): row["attainment"]
        for row in rows
        if row["policy"] == "cost"
    }
    for key, goodput in levels.items():
        fixed = {name: value for name, value in goodput.items() if name not in ("cost", ORACLE)}
        best = max(fixed, key=lambda name: fixed[name])
        higher = [other for other in shares if other[:3] == key[:3] and other[3] > key[3]]
        yield {
            "level": f"{key[0]} {key[1]}+{key[2]} x{key[3]:g}",
            "cost_rps": goodput["cost"],
            "cost_attainment": shares[key],
            "best_fixed": best,
            "best_fixed_rps": fixed[best],
            "cost_to_best_fixed": _ratio(goodput["cost"], fixed[best]),
            "cost_to_best_threshold": _ratio(
                goodput["cost"], max(goodput[name] for name in THRESHOLDS)
            ),
            "cost_to_round_robin": _ratio(goodput["cost"], goodput["round_robin"]),
            "regret": round(1 - _ratio(goodput["cost"], goodput[ORACLE]), 4),
            "knee": shares[key] >= KNEE and all(shares[other] < KNEE for other in higher),
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


@lru_cache(maxsize=4)
def _trace(source: str, num_requests: int, seed: int) -> Trace:
    # Read once per process: a run of the simulator is not much longer.
    trace = read_trace(source, seed=seed)
    return replace(trace, requests=trace.requests[:num_requests]) if num_requests else trace


def _ratio(value: float, other: float) -> float:
    return round(value / other, 4) if other else 0.0


if __name__ == "__main__":
    main()
