"""What a simulation found."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baton.simulator.config import SimConfig
from baton.simulator.gaps import GapHistogram
from baton.simulator.job import Job
from baton.simulator.request import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run's figures in seconds and requests per second; None where nothing was measured.

    `goodput_rps` counts requests within both SLOs over the time in which requests arrived,
    `attainment` is their share. ITL percentiles are over all gaps between tokens, TTFT ones over
    requests. `local_share` is that of requests whose prompt their decode worker computed,
    `cached_share` that of prompt tokens found in the cache of the worker that computed the prompt.
    """

    policy: str
    num_requests: int
    num_failed: int
    duration_s: float
    goodput_rps: float
    attainment: float
    ttft_attainment: float
    itl_attainment: float
    ttft_mean: float | None
    ttft_p50: float | None
    ttft_p95: float | None
    ttft_p99: float | None
    itl_p50: float | None
    itl_p95: float | None
    itl_p99: float | None
    gpu_hours: float
    local_share: float
    cached_share: float
    reasons: dict[str, int]
    # 101 quantiles, from the least to the most: TTFT and mean ITL of requests.
    ttft_curve: tuple[float, ...] = ()
    itl_curve: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, trace: Trace, config: SimConfig, jobs: Sequence[Job], gaps: GapHistogram, hours: float
    ) -> Outcome:
        """Measures jobs that have all ended."""
        served = [job for job in jobs if not job.error]
        ttfts = sorted(map(ttft_s, served))
        last_s = max((job.finish_s for job in served), default=0.0)
        # A trace of one moment has no arrival time to divide by.
        duration_s = trace.duration_s or last_s
        router = config.router
        in_time = [ttft_s(job) <= router.ttft_slo_s for job in served]
        steady = [itl_s(job) <= router.itl_slo_s for job in served]
        num_good = sum(map(operator.and_, in_time, steady))
        num_jobs = len(jobs)
        num_tokens = sum(job.request.num_prompt_tokens for job in served)
        return cls(
            policy=config.router.policy,
            num_requests=num_jobs,
            num_failed=num_jobs - len(served),
            duration_s=duration_s,
            goodput_rps=num_good / duration_s if duration_s > 0 else 0.0,
            attainment=num_good / num_jobs,
            ttft_attainment=sum(in_time) / num_jobs,
            itl_attainment=sum(steady) / num_jobs,
            ttft_mean=sum(ttfts) / len(ttfts) if ttfts else None,
            ttft_p50=quantile(ttfts, 0.50),
            ttft_p95=quantile(ttfts, 0.95),
            ttft_p99=quantile(ttfts, 0.99),
            itl_p50=gaps.quantile(0.50),
            itl_p95=gaps.quantile(0.95),
            itl_p99=gaps.quantile(0.99),
            gpu_hours=hours,
            local_share=sum(job.local for job in served) / max(1, len(served)),
            cached_share=sum(job.num_cached for job in served) / max(1, num_tokens),
            reasons=dict(Counter(job.reason for job in served)),
            ttft_curve=curve(ttfts),
            itl_curve=curve(sorted(map(itl_s, served))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to what they are good for; without the curves."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
            if not name.endswith("_curve")
        }


def ttft_s(job: Job) -> float:
    """From its arrival to its first token."""
    return job.first_s - job.request.arrival_s


def itl_s(job: Job) -> float:
    """The mean time between its tokens; 0.0 for a single one."""
    num_gaps = job.request.num_output_tokens - 1
    return (job.finish_s - job.first_s) / num_gaps if num_gaps else 0.0


def curve(ordered: Sequence[float]) -> tuple[float, ...]:
    """101 quantiles of ordered values, or none of none."""
    last = len(ordered) - 1
    return tuple(ordered[round(last * percent / 100)] for percent in range(101) if ordered)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, int(share * len(ordered) + 0.999999) - 1))]
