"""`slo` autoscaling beside fixed pools on a trace with a burst of four times the load, simulated.

    python -m benchmarks.autoscaling [--startup 65] [--rates 2,4] [--seeds 1,2,3]

The trace is the mix `burst` at `--rates` requests a second outside of the burst. The best fixed
pool is the smallest that serves 95 % of requests within both SLOs: of each size the splits around
the half are tried. Workers take `--startup` seconds from being asked for to their
first request: 65 s is vLLM 0.26 with an 8B model, weights at hand and a warm compile cache, on an
H100.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from baton.router.config import RouterConfig
from baton.router.scaling_config import ScalingConfig
from baton.simulator.config import SimConfig, SimScaling
from baton.simulator.mixes import MIXES
from baton.simulator.outcome import Outcome
from baton.simulator.planner import busy_workers
from baton.simulator.request import Trace
from baton.simulator.simulation import Simulation
from baton.simulator.synthetic import synthesize
from benchmarks.results_file import write_results

OUTPUT = Path(__file__).parent / "results" / "autoscaling.json"
TARGET = 0.95
# Of a trace's mean load, that of its burst.
_BURST = 2.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One trace and one fleet."""

    rate: float
    seed: int
    config: SimConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="2,4")
    parser.add_argument("--startup", type=float, default=65.0)
    parser.add_argument("--ttft-slo", type=float, default=3.0)
    parser.add_argument("--itl-slo", type=float, default=0.05)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for rate in map(float, options.rates.split(",")):
            for seed in map(int, options.seeds.split(",")):
                rows += compared(_setting(options, rate, seed), pool)
                print(rows[-1], flush=True)
    write_results(options.output, rows, {**vars(options), "output": "", "target": TARGET})


def compared(setting: Setting, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """Rows of fixed pools and, last, of the pools that `slo` scales, beside the best fixed one."""
    scaled = pool.submit(run_scaled, setting)
    rows = list(fixed_pools(setting, pool))
    best = min((row for row in rows if row["meets_target"]), key=lambda r: r["gpu_hours"])
    last = scaled.result()
    saved = 1 - last["gpu_hours"] / best["gpu_hours"]
    rows.append(last | {"best_fixed": best["pools"], "gpu_hours_saved": round(saved, 4)})
    return [{"rate": setting.rate, "seed": setting.seed} | row for row in rows]


def _setting(options: argparse.Namespace, rate: float, seed: int) -> Setting:
    router = RouterConfig(ttft_slo_s=options.ttft_slo, itl_slo_s=options.itl_slo)
    config = SimConfig(prefill=1, decode=1, seed=seed, startup_s=options.startup, router=router)
    return Setting(rate=rate, seed=seed, config=config)


def fixed_pools(setting: Setting, pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """Rows of fixed pools, the smallest size that meets the target and the one below among them."""
    # What the burst fills, about; from there a size at a time.
    busy = busy_workers(_trace(setting.rate, setting.seed), setting.config)
    size, step = round(_BURST * busy), 0
    while size > 1:
        splits = [count for count in range(size // 2 - 1, size // 2 + 2) if 0 < count < size]
        rows = list(pool.map(partial(run_fixed, setting, size), splits))
        yield from rows
        met = any(row["meets_target"] for row in rows)
        if step and met == (step > 0):
            return
        step = -1 if met else 1
        size += step


def run_fixed(setting: Setting, size: int, prefill: int) -> dict[str, Any]:
    """One fixed pool as one row."""
    config = replace(setting.config, prefill=prefill, decode=size - prefill)
    outcome = Simulation(_trace(setting.rate, setting.seed), config).run()
    return _row(f"fixed {prefill}+{size - prefill}", outcome)


def run_scaled(setting: Setting) -> dict[str, Any]:
    """The pools that `slo` scales, beginning as large as the load before the burst asks for."""
    base, router = setting.config, setting.config.router
    scaling = ScalingConfig(
        policy="slo",
        ttft_slo_s=router.ttft_slo_s,
        itl_slo_s=router.itl_slo_s,
        start_s=base.startup_s,
    )
    begin = max(1, round(setting.rate / 2))
    config = replace(base, prefill=begin, decode=begin, scaling=SimScaling(config=scaling))
    simulation = Simulation(_trace(setting.rate, setting.seed), config)
    outcome = simulation.run()
    changes = [f"{at_s:.0f} s: {role.value} {size}" for at_s, role, size, _ in simulation.resizes]
    return _row("slo", outcome) | {"changes": changes}


@lru_cache(maxsize=1)
def _trace(rate: float, seed: int) -> Trace:
    mix = MIXES["burst"]
    classes = tuple(replace(each, rate=rate) for each in mix.classes)
    return synthesize("burst", replace(mix, classes=classes), seed)


def _row(pools: str, outcome: Outcome) -> dict[str, Any]:
    values = outcome.to_dict()
    names = ("attainment", "goodput_rps", "ttft_p50", "ttft_p95", "itl_p95", "gpu_hours")
    row = {"pools": pools} | {name: values[name] for name in names}
    return row | {"meets_target": outcome.attainment >= TARGET}


if __name__ == "__main__":
    main()
