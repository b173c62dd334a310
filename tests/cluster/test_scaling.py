"""Serve's side of autoscaling: its contexts become pool states, settings change while it runs."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.cluster.fake_server import fake_server

from baton.cluster.commands.config import as_document, changes, live_values, paths, split
from baton.cluster.commands.scaling import report
from baton.cluster.config import BatonConfig, DirectoryConfig, resolve
from baton.cluster.control import check_scaling, differences
from baton.cluster.scaling import PoolPolicy, replica_signals, replica_stats
from baton.cluster.scaling_board import (
    AppliedScaling,
    PoolScaling,
    ScalingBoard,
    ScalingInputs,
    deployed_scaling,
)
from baton.cluster.schema import parse_document
from baton.protos.clock import ManualClock
from baton.protos.errors import ConfigError
from baton.protos.types import Role, WorkerLoad
from baton.router.scaling_config import ScalingConfig
from baton.router.scaling_signals import Demand, ScalingDecision

NOW_S = 1_000_000.0
FAST = ScalingConfig(policy="utilization", down_cooldown_s=0, interval_s=1.0, hysteresis=0)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def read(text: str, model: str) -> BatonConfig:
    return resolve(parse_document(text, "baton.yaml").override(("model",), model, "MODEL_DIR"))


class ScriptedFeed:
    def __init__(self) -> None:
        self.heard = ScalingInputs(demand=Demand())
        self.told: list[ScalingDecision] = []

    def inputs(self) -> ScalingInputs:
        return self.heard

    def tell(self, decision: ScalingDecision) -> None:
        self.told.append(decision)


def policy(feed: ScriptedFeed, scaling: ScalingConfig = FAST, *, most: int = 8) -> PoolPolicy:
    pool = PoolScaling(min_replicas=1, max_replicas=most, scaling=scaling)
    return PoolPolicy("baton", "decode", "base", pool.to_json(), {}, {}, feed)


def series(*values: float, age_s: float = 0.0) -> list[SimpleNamespace]:
    last = len(values) - 1
    return [
        SimpleNamespace(timestamp=NOW_S - age_s - (last - i), value=v) for i, v in enumerate(values)
    ]


def context(
    metrics: Mapping[str, Mapping[str, Any]], *, size: int, now_s: float = NOW_S
) -> SimpleNamespace:
    return SimpleNamespace(
        raw_metrics=metrics,
        current_num_replicas=size,
        target_num_replicas=size,
        current_time=now_s,
    )


def test_reports_are_the_newest_values_and_old_ones_are_none() -> None:
    metrics = {
        "busy": {"r1": series(1, 0, 1, 0), "r2": series(1, age_s=60.0), "r3": []},
        "kv_use": {"r1": series(0.1, 0.2, 0.3, 0.4), "r2": series(0.9, age_s=60.0)},
    }
    (signals,) = replica_signals(metrics, NOW_S)
    assert (signals.replica_id, signals.busy, signals.kv_use) == ("r1", 0.5, 0.4)


def test_a_replica_reports_what_its_policy_needs() -> None:
    load = WorkerLoad(num_running=3, total_blocks=100, free_blocks=40, running_kv_tokens=900)
    stats = replica_stats(load, max_running=64, block_size=16)
    assert (stats["busy"], stats["kv_use"], stats["kv_capacity_tokens"]) == (1.0, 0.6, 1600.0)
    assert all(isinstance(value, float) for value in stats.values())
    metrics = {name: {"r": series(value)} for name, value in stats.items()}
    (signals,) = replica_signals(metrics, NOW_S)
    assert (signals.num_running, signals.kv_tokens, signals.max_running) == (3.0, 900.0, 64.0)


def test_a_policy_grows_and_shrinks_its_pool_and_tells_why() -> None:
    feed = ScriptedFeed()
    decide = policy(feed)
    full = {"busy": {"r": series(1.0)}, "kv_use": {"r": series(1.0)}}
    assert decide(context(full, size=1)) == (2, {})
    # Between two decisions Serve's own target stands.
    assert decide(context(full, size=2, now_s=NOW_S + 0.5)) == (2, {})
    idle = {name: {"r": series(0.0), "s": series(0.0)} for name in ("busy", "kv_use")}
    assert decide(context(idle, size=2, now_s=NOW_S + 1.5)) == (1, {})
    assert [d.target for d in feed.told] == [2, 1]
    assert "replicas use 1.00 of 1" in feed.told[0].reason


def test_applied_settings_count_only_for_the_deployment_that_they_were_applied_to() -> None:
    feed = ScriptedFeed()
    decide = policy(feed)
    full = {"busy": {"r": series(1.0)}, "kv_use": {"r": series(1.0)}}
    bounded = PoolScaling(min_replicas=1, max_replicas=1, scaling=FAST)
    applied = AppliedScaling(base="another", pools={Role.DECODE: bounded})
    feed.heard = ScalingInputs(demand=Demand(), applied=applied)
    assert decide(context(full, size=1))[0] == 2
    feed.heard = ScalingInputs(
        demand=Demand(), applied=AppliedScaling(base="base", pools={Role.DECODE: bounded})
    )
    assert decide(context(full, size=2, now_s=NOW_S + 2))[0] == 1
    assert "max_replicas" in feed.told[-1].reason


def test_a_policy_that_fails_leaves_its_pool_alone(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenFeed(ScriptedFeed):
        def inputs(self) -> ScalingInputs:
            raise RuntimeError("broken")

    assert policy(BrokenFeed())(context({}, size=3)) == (3, {})
    assert "stays at 3" in caplog.text


def test_a_board_knows_what_is_asked_for_now() -> None:
    board = ScalingBoard(5.0, ManualClock())
    assert board.targets() == {}
    decision = ScalingDecision(
        role=Role.DECODE,
        now_s=0.0,
        policy="slo",
        num_before=1,
        num_running=1,
        wanted=3,
        target=3,
        reason="",
        confidence=1.0,
    )
    board.report_decision(decision)
    assert board.targets() == {"decode": 3}
    board.report_decision(dataclasses.replace(decision, dry_run=True))
    assert board.targets() == {"decode": 1}


def test_a_board_adds_up_gateways_and_forgets_dead_ones() -> None:
    clock = ManualClock()
    board = ScalingBoard(5.0, clock)
    assert board.inputs().demand is None
    board.report_demand("g0", Demand(requests_per_s=2.0, waiting_requests=1))
    clock.advance(3.0)
    board.report_demand("g1", Demand(requests_per_s=3.0))
    demand = board.inputs().demand
    assert demand is not None
    assert (demand.requests_per_s, demand.waiting_requests) == (5.0, 1)
    clock.advance(3.0)
    demand = board.inputs().demand
    assert demand is not None
    assert demand.requests_per_s == 3.0
    clock.advance(5.0)
    assert board.inputs().demand is None


def test_settings_survive_their_json(model: str) -> None:
    text = """
decode:
  max_replicas: 4
  scaling:
    policy: schedule
    windows:
      - {start: "0 8 * * 1-5", duration_s: 36000, replicas: 3, timezone: Europe/Berlin}
"""
    config = read(text, model)
    pool = PoolScaling.of(config.decode)
    assert PoolScaling.from_json(pool.to_json()) == pool
    assert pool.scaling.windows[0].replicas == 3
    assert deployed_scaling(config).base == deployed_scaling(read(text, model)).base
    assert deployed_scaling(config).base != deployed_scaling(read("", model)).base


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "decode:\n  max_replicas: 4\n  scaling:\n    polcy: slo\n",
            "line 4: decode.scaling.polcy is not a known key; did you mean policy?",
        ),
        (
            "decode:\n  max_replicas: 4\n  scaling:\n    policy: fast\n",
            "line 4: decode.scaling: policy is 'fast', but must be one of slo, queue",
        ),
        ("decode: {min_replicas: 0}\n", "min_replicas is 0, but must be at least 1"),
        (
            'decode: {scaling: {windows: [{start: "8", duration_s: 60, replicas: 1}]}}\n',
            "must have five fields",
        ),
    ],
)
def test_wrong_settings_name_line_and_field(model: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, model)
    assert said in caught.value.message


def test_a_pool_that_may_go_to_zero_is_waited_for(model: str) -> None:
    config = read("decode: {min_replicas: 0, max_replicas: 2}\n", model)
    assert config.fleet.wake_wait_s == 300.0
    own = read("decode: {min_replicas: 0, max_replicas: 2}\nfleet: {wake_wait_s: 9}\n", model)
    assert own.fleet.wake_wait_s == 9.0
    assert read("", model).fleet.wake_wait_s == 0.0


def test_what_a_running_cluster_cannot_do_is_refused(model: str) -> None:
    config = read("prefill: {min_replicas: 0}\ndecode: {max_replicas: 2}\n", model)
    pools = deployed_scaling(config).pools

    def refusal(role: Role, low: int, high: int) -> str:
        wanted = {**pools, role: PoolScaling(min_replicas=low, max_replicas=high)}
        with pytest.raises(ConfigError) as caught:
            check_scaling(config, wanted)
        return caught.value.message

    assert "started without that pool" in refusal(Role.PREFILL, 0, 1)
    assert "wake_wait_s" in refusal(Role.DECODE, 0, 2)
    assert "at least 3" in refusal(Role.DECODE, 3, 2)
    assert "private Ray was started for 2" in refusal(Role.DECODE, 1, 3)
    check_scaling(config, {**pools, Role.DECODE: PoolScaling(min_replicas=2, max_replicas=2)})


def test_live_keys_are_told_from_those_that_need_a_restart(model: str) -> None:
    running = as_document(read("decode: {max_replicas: 3}\ngateway: {http_port: 9000}\n", model))
    text = """
decode: {max_replicas: 5, scaling: {policy: queue}}
engine: {max_running: 32}
"""
    wanted = as_document(read(text, model))
    live, fixed = split(changes(running, wanted), paths(yaml.safe_load(text)))
    assert list(live.values()) == [
        "decode.max_replicas: 3 -> 5",
        "decode.scaling.policy: slo -> queue",
    ]
    assert fixed == [
        "decode.engine.max_running: 64 -> 32",
        "prefill.engine.max_running: 64 -> 32",
    ]
    sent = live_values(wanted, live)
    assert (set(sent), sent["decode"]["max_replicas"]) == ({"decode"}, 5)
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b: 1 -> 2"]
    same, nothing = split(changes(running, running), set())
    assert (same, nothing) == ({}, [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serve_is_told_to_do_what_the_policy_says(model: str) -> None:
    from baton.cluster.app import _replicas

    config = read("decode: {max_replicas: 3}\n", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        options = _replicas(config.decode, config)["autoscaling_config"]
    assert (options.min_replicas, options.upscale_delay_s, options.downscale_delay_s) == (0, 0, 0)
    kwargs = options.policy.policy_kwargs
    assert kwargs["pool"]["max_replicas"] == 3
    assert DirectoryConfig(**kwargs["directory"]) == config.directory


def test_the_report_for_people() -> None:
    decision = {"role": "decode", "num_running": 1, "now_s": NOW_S, "line": "decode goes up"}
    pool = PoolScaling(min_replicas=1, max_replicas=4, scaling=ScalingConfig(dry_run=True))
    document = {
        "pools": {"prefill": pool.to_json(), "decode": pool.to_json()},
        "latest": [decision],
        "changes": [decision],
    }
    lines = report(document, 5)
    assert lines[:2] == ["prefill: 1 to 4 replicas, policy slo, dry run", "  no decision yet"]
    assert lines[3] == "  1 run; decode goes up"
    assert lines[-1].endswith("decode goes up")


def test_apply_sends_what_changed_and_refuses_the_rest(model: str, tmp_path: Path) -> None:
    from baton.cluster.cli import baton

    running = as_document(read("decode: {max_replicas: 3}\n", model))
    file = tmp_path / "baton.yaml"
    with fake_server() as server:
        server.documents["/baton/config"] = running
        server.documents["/baton/scaling/apply"] = {"changed": []}

        def run(text: str, *options: str) -> Any:
            file.write_text(f"model: {model}\n{text}")
            return CliRunner().invoke(
                baton, ["config", "apply", str(file), "--url", server.url, *options]
            )

        assert "Nothing to change" in run("decode: {max_replicas: 3}").output
        assert "Would change" in run("decode: {max_replicas: 5}", "--dry-run").output
        assert server.posted == []
        assert "decode.max_replicas: 3 -> 5" in run("decode: {max_replicas: 5}").output
        assert server.posted[-1]["decode"]["max_replicas"] == 5
        mixed = "decode: {max_replicas: 5}\ngateway: {max_concurrent_requests: 5}"
        refused = run(mixed)
        assert isinstance(refused.exception, ConfigError)
        assert "gateway.max_concurrent_requests: 1024 -> 5" in refused.output
        assert len(server.posted) == 1
        assert run(mixed, "--scaling-only").exit_code == 0
        assert len(server.posted) == 2
