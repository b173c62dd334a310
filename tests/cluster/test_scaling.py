from __future__ import annotations

from types import SimpleNamespace

import pytest

from baton.cluster.scaling import TARGET_BUSY, busy, scale_pool, wanted_replicas


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ({}, 0.0),
        ({"kv_use": 0.4}, 0.4),
        ({"queued_prefill_tokens": 500.0, "prefill_tokens_per_s": 1000.0}, 0.5),
        ({"queued_prefill_tokens": 500.0}, 1.0),
        ({"kv_use": 0.9, "queued_prefill_tokens": 100.0, "prefill_tokens_per_s": 1000.0}, 0.9),
    ],
)
def test_busy(stats: dict[str, float], expected: float) -> None:
    assert busy(stats) == pytest.approx(expected)


def test_wanted_replicas() -> None:
    assert wanted_replicas(3, []) == 3, "no reports: no change"
    assert wanted_replicas(1, [{"kv_use": 0.0}]) == 1, "never below one"
    assert wanted_replicas(2, [{"kv_use": 1.0}, {"kv_use": 1.0}]) == 3
    assert wanted_replicas(4, [{"kv_use": 0.1}] * 4) == 1
    assert wanted_replicas(1, [{"queued_prefill_tokens": 9e9, "prefill_tokens_per_s": 1.0}]) == 2


def test_the_target_is_a_fixed_point() -> None:
    for count in range(1, 20):
        assert wanted_replicas(count, [{"kv_use": TARGET_BUSY}] * count) in (count, count + 1)


def test_the_adapter_regroups_metrics_by_replica() -> None:
    context = SimpleNamespace(
        aggregated_metrics={"kv_use": {"r1": 1.0, "r2": 1.0}, "num_running": {"r1": 5.0}},
        current_num_replicas=2,
    )
    assert scale_pool(context) == (3, {})
    assert scale_pool(SimpleNamespace(aggregated_metrics=None, current_num_replicas=2)) == (2, {})
