"""From samples to the figures of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from baton.cluster.bench.wire import Sample

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A distribution: how many values, their mean and greatest, and percentiles by number."""

    count: int
    mean: float
    max: float
    percentiles: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run measured. Times are seconds, rates are per second.

    ttft: from sending to the first tokens. itl: between two events of a stream (which may carry
    several tokens). tpot: a request's time after its first tokens, divided among the tokens after
    the first. e2e: the whole request. Requests that failed count in `errors` only.
    """

    num_requests: int
    num_ok: int
    elapsed_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    ttft: Summary | None
    itl: Summary | None
    tpot: Summary | None
    e2e: Summary | None
    errors: dict[str, int]

    @property
    def requests_per_s(self) -> float:
        return self.num_ok / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def total_tokens_per_s(self) -> float:
        total = self.num_prompt_tokens + self.num_output_tokens
        return total / self.elapsed_s if self.elapsed_s else 0.0


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of ascending `ordered` lie, interpolated linearly.

    Raises ValueError for no values or a percentage outside [0, 100].
    """
    if not ordered or not 0 <= percent <= 100:
        raise ValueError(f"no {percent}th percentile of {len(ordered)} values")
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(values: Sequence[float]) -> Summary | None:
    """None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Summary(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        max=ordered[-1],
        percentiles={p: percentile(ordered, p) for p in PERCENTILES},
    )


def figures(samples: Sequence[Sample], elapsed_s: float) -> Figures:
    """Everything that a report needs."""
    good = [s for s in samples if not s.error]
    # A stream without usage: its events are the best count of tokens that there is.
    outputs = [s.num_output_tokens or (1 + len(s.gaps_s) if s.first_s else 0) for s in good]
    spread = [
        (sum(s.gaps_s) / (n - 1)) for s, n in zip(good, outputs, strict=True) if s.first_s and n > 1
    ]
    return Figures(
        num_requests=len(samples),
        num_ok=len(good),
        elapsed_s=elapsed_s,
        num_prompt_tokens=sum(s.num_prompt_tokens for s in good),
        num_cached_tokens=sum(s.num_cached_tokens for s in good),
        num_output_tokens=sum(outputs),
        ttft=summarise([s.first_s - s.start_s for s in good if s.first_s]),
        itl=summarise([gap for s in good for gap in s.gaps_s]),
        tpot=summarise(spread),
        e2e=summarise([s.end_s - s.start_s for s in good]),
        errors=dict(Counter(s.error for s in samples if s.error).most_common()),
    )
