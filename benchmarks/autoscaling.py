"""`slo` autoscaling beside fixed pools on a trace with a burst of four times the load, simulated.

    python -m benchmarks.autoscaling [--startup 65]

The best fixed pool is the smallest (by `baton plan`'s search) that serves 95 % of requests within
both SLOs. Workers take `--startup` seconds from being asked for to their first request: 65 s is
vLLM 0.26 with an 8B model, weights at hand and a warm compile cache, on an H100.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from baton.router.config import RouterConfig
from baton.router.scaling_config import ScalingConfig
from baton.simulator.config import SimConfig, SimScaling
from baton.simulator.outcome import Outcome
from baton.simulator.planner import plan_fleet
from baton.simulator.simulation import Simulation
from baton.simulator.trace import read_trace
from benchmarks.results_file import write_results

OUTPUT = Path(__file__).parent / "results" / "autoscaling.json"
TARGET = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", default="synthetic:burst")
    parser.add_argument("--startup", type=float, default=65.0)
    parser.add_argument("--ttft-slo", type=float, default=3.0)
    parser.add_argument("--itl-slo", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    trace = read_trace(options.trace, seed=options.seed)
    base = SimConfig(
        prefill=1,
        decode=1,
        seed=options.seed,
        startup_s=options.startup,
        router=RouterConfig(ttft_slo_s=options.ttft_slo, itl_slo_s=options.itl_slo),
    )
    rows: list[dict[str, Any]] = []
    found = plan_fleet(
        trace,
        base,
        target=TARGET,
        max_workers=24,
        say=lambda s: rows.append(_row(f"fixed {s.prefill}+{s.decode}", s.outcome)),
    )
    if found.best is None:
        raise SystemExit("no fixed pool meets the SLOs")
    scaling = SimScaling(
        config=ScalingConfig(
            policy="slo",
            ttft_slo_s=options.ttft_slo,
            itl_slo_s=options.itl_slo,
            start_s=options.startup,
        )
    )
    simulation = Simulation(trace, replace(base, scaling=scaling))
    scaled = simulation.run()
    saved = 1 - scaled.gpu_hours / found.best.outcome.gpu_hours
    rows.append(
        _row("slo", scaled)
        | {
            "best_fixed": f"{found.best.prefill}+{found.best.decode}",
            "gpu_hours_saved": round(saved, 4),
            "meets_target": scaled.attainment >= TARGET,
            "changes": [
                f"{at_s:.0f} s: {role.value} {size}" for at_s, role, size, _ in simulation.resizes
            ],
        }
    )
    for row in rows:
        print(row, flush=True)
    write_results(options.output, rows, {**vars(options), "output": "", "target": TARGET})


def _row(pools: str, outcome: Outcome) -> dict[str, Any]:
    values = outcome.to_dict()
    names = ("attainment", "goodput_rps", "ttft_p50", "ttft_p95", "itl_p95", "gpu_hours")
    return {"pools": pools} | {name: values[name] for name in names}


if __name__ == "__main__":
    main()
