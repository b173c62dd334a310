"""Two readings of gateways as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from baton.cluster.top.reading import Reading

Row = Sequence[str]
_POOL = ("POOL", "WORKERS", "TARGET", "RUN", "WAIT", "QUEUED", "KV")
_WORKER = ("WORKER", "ROLE", "STATE", "RUN", "WAIT", "QUEUED", "KV", "STEP", "AGE")


def render(before: Reading, now: Reading) -> list[str]:
    """What happened between the readings beside what happened since the gateways' start, then how
    pools and workers are now.
    """
    waiting = now.total("baton_tenant_waiting")
    in_flight = now.total("baton_requests_in_flight")
    seconds = now.at_s - before.at_s
    several = len(now.values("baton_requests_in_flight", "gateway")) > 1
    where = "the gateways" if several else "the gateway"
    head = f"{in_flight:.0f} requests in flight, {waiting:.0f} wait in {where}"
    since = now.since(before)
    return [
        head,
        "",
        *columns([("", f"LAST {seconds:.1f} S", "IN ALL"), *_figures(since, now, seconds)], 1),
        "",
        *columns([_POOL, *_pools(now)], 1),
        "",
        *columns([_WORKER, *map(_worker, now.workers)], 3),
    ]


def columns(rows: Sequence[Row], num_left: int) -> list[str]:
    """Lines with aligned columns; all but the first `num_left` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < num_left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _figures(since: Reading, now: Reading, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for name, outcome in (("requests ok", True), ("requests failed", False)):
        rows.append((name, _rate(_ended(since, outcome), seconds), f"{_ended(now, outcome):,.0f}"))
    for name, metric in (("prompt tokens", "prompt"), ("output tokens", "generated")):
        metric = f"baton_{metric}_tokens_total"
        rows.append((name, _rate(since.total(metric), seconds), f"{now.total(metric):,.0f}"))
    for name, metric in (("TTFT", "baton_ttft_seconds"), ("ITL", "baton_itl_seconds")):
        for part, label in ((0.5, "p50"), (0.95, "p95")):
            rows.append(
                (f"{name} {label}", *(_time(r.quantile(metric, part)) for r in (since, now)))
            )
    rows.append(("prompt cached", *map(_cached, (since, now))))
    for tier in now.values("baton_worker_tier_wanted_blocks_total", "tier"):
        rows.append((f"hits in {tier}", *(_tier(r, tier) for r in (since, now))))
    for kind in now.values("baton_plans_total", "kind"):
        for reason in now.values("baton_plans_total", "reason"):
            rows += _plan(since, now, kind, reason)
    return rows


def _ended(reading: Reading, ok: bool) -> float:
    good = reading.total("baton_requests_total", outcome="ok")
    return good if ok else reading.total("baton_requests_total") - good


def _cached(reading: Reading) -> str:
    cached = reading.total("baton_cached_prompt_tokens_total")
    return _share(cached, reading.total("baton_prompt_tokens_total"))


def _tier(reading: Reading, tier: str) -> str:
    hits = reading.total("baton_worker_tier_hit_blocks_total", tier=tier)
    return _share(hits, reading.total("baton_worker_tier_wanted_blocks_total", tier=tier))


def _plan(since: Reading, now: Reading, kind: str, reason: str) -> list[Row]:
    counts = [r.total("baton_plans_total", kind=kind, reason=reason) for r in (since, now)]
    if not counts[1]:
        return []
    shares = (
        _share(n, r.total("baton_plans_total")) for n, r in zip(counts, (since, now), strict=True)
    )
    return [(f"plans {kind}, {reason}", *shares)]


def _pools(now: Reading) -> Iterable[Row]:
    targets = now.values("baton_pool_target_replicas", "pool")
    for role in sorted({*targets, *(worker["role"] for worker in now.workers)}):
        members = [worker for worker in now.workers if worker["role"] == role]
        num_up = sum(worker["state"] == "up" for worker in members)
        target = now.largest("baton_pool_target_replicas", pool=role)
        asked = "-" if target is None else f"{target:.0f}"
        yield (role, f"{num_up} of {len(members)}", asked, *_load([w["load"] for w in members]))


def _worker(worker: Mapping[str, Any]) -> Row:
    step_s, age_s = worker["load"]["decode_step_s"], worker["age_s"]
    return (
        worker["worker_id"],
        worker["role"],
        worker["state"],
        *_load([worker["load"]]),
        _time(step_s or None),
        "never" if age_s is None else f"{age_s:.1f} s",
    )


def _load(loads: Sequence[Mapping[str, Any]]) -> Row:
    def total(name: str) -> int:
        return sum(load[name] for load in loads)

    blocks = total("total_blocks")
    counts = (str(total(n)) for n in ("num_running", "num_waiting", "queued_prefill_tokens"))
    return (*counts, _share(blocks - total("free_blocks"), blocks))


def _rate(count: float, seconds: float) -> str:
    return f"{count / seconds:,.1f}/s" if seconds > 0 else "-"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
