"""Pool sizes: each policy's arithmetic, and what no policy may do however the signals behave."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protos.errors import ConfigError
from baton.protos.types import Role
from baton.router.cron import Cron
from baton.router.forecast import Forecast
from baton.router.scaling import PoolScaler
from baton.router.scaling_config import SCALING_POLICIES, ScalingConfig, ScheduleWindow
from baton.router.scaling_signals import Demand, PoolState, ReplicaSignals, ScalingDecision
from baton.router.sizing import wait_tail
from baton.router.times import H100_8B

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC).timestamp()
ALWAYS = ScheduleWindow(start="* * * * *", duration_s=60, replicas=3)


def demand(rps: float, tokens: float = 2000.0, output: float = 200.0, **more: object) -> Demand:
    return Demand(
        requests_per_s=rps,
        prompt_tokens_per_s=rps * tokens,
        prompt_squares_per_s=rps * 2 * tokens**2,
        output_tokens_per_s=rps * output,
        prefill=H100_8B.prefill_pool,
        decode=H100_8B.decode_pool,
        **more,  # type: ignore[arg-type]
    )


def pool(role: Role = Role.PREFILL, size: int = 1, **more: object) -> PoolState:
    given_: dict[str, object] = {
        "role": role,
        "now_s": NOON,
        "num_target": size,
        "num_running": size,
        "min_replicas": 1,
        "max_replicas": 64,
        "replicas": tuple(ReplicaSignals(replica_id=str(i)) for i in range(size)),
        "demand": Demand(),
    }
    return PoolState(**(given_ | more))  # type: ignore[arg-type]


class Run:
    """A pool whose replicas come and go as it is told, a second at a time."""

    def __init__(self, config: ScalingConfig, state: PoolState, *, start_s: float = 0.0) -> None:
        self.scaler = PoolScaler(config)
        self.state = state
        self._start_s = start_s
        self._coming: list[float] = []

    def tick(self, **changes: object) -> ScalingDecision:
        changes.setdefault("replicas", pool(size=self.state.num_running).replicas)
        state = replace(self.state, **changes)  # type: ignore[arg-type]
        decision = self.scaler.decide(state)
        now_s = state.now_s
        grown = decision.applied - state.num_target
        self._coming += [now_s + self._start_s] * max(0, grown)
        for _ in range(max(0, -grown)):
            if self._coming:
                self._coming.pop()
        running = decision.applied - sum(at > now_s for at in self._coming)
        self._coming = [at for at in self._coming if at > now_s]
        self.state = replace(
            state, now_s=now_s + 1, num_target=decision.applied, num_running=running
        )
        return decision


def test_erlang_c_and_its_limits() -> None:
    # M/M/1: P(wait) is the utilization. M/M/2 at 1.5 Erlang: 0.6429.
    assert wait_tail(1, 0.5, 0.0, 1.0) == pytest.approx(0.5)
    assert wait_tail(2, 1.5, 0.0, 1.0) == pytest.approx(9 / 14)
    assert wait_tail(3, 3.5, 1.0, 1.0) == 1.0
    assert wait_tail(1, 0.5, 2.0, 1.0) == pytest.approx(0.5 * math.exp(-1))


def test_slo_grows_a_prefill_pool_with_the_load_and_more_for_a_tighter_slo() -> None:
    def wanted(rps: float, slo_s: float) -> int:
        scaler = PoolScaler(ScalingConfig(ttft_slo_s=slo_s))
        return scaler.decide(pool(demand=demand(rps))).wanted

    service_s = H100_8B.prefill_pool.prefill.predict(2000)
    for rps in (1.0, 10.0, 100.0, 1000.0):
        assert wanted(rps, 1.0) > rps * service_s
        assert wanted(rps, 0.1) >= wanted(rps, 1.0)
    # Large pools need little more than the work itself.
    assert wanted(1000.0, 1.0) < 1.1 * 1000.0 * service_s + 2


def test_slo_sizes_a_decode_pool_by_what_runs_within_the_itl() -> None:
    state = pool(Role.DECODE, demand=demand(50.0, output=400.0))
    loose = PoolScaler(ScalingConfig(itl_slo_s=0.05)).decide(state)
    tight = PoolScaler(ScalingConfig(itl_slo_s=0.007)).decide(state)
    assert tight.wanted > loose.wanted >= 1
    assert "within an ITL of 0.007 s" in tight.reason


def test_queue_and_utilization() -> None:
    replicas = tuple(
        ReplicaSignals(replica_id=str(i), queued_prefill_tokens=20_000, busy=1.0, kv_use=0.5)
        for i in range(2)
    )
    state = pool(size=2, replicas=replicas)
    queue = PoolScaler(ScalingConfig(policy="queue", queue_tokens_per_replica=8000)).decide(state)
    assert queue.wanted == 5
    used = PoolScaler(ScalingConfig(policy="utilization", target_utilization=0.5)).decide(state)
    assert used.wanted == 4
    # A replica that has not reported is taken to be like the other.
    half = PoolScaler(ScalingConfig(policy="utilization", target_utilization=0.5)).decide(
        replace(state, replicas=replicas[:1])
    )
    assert (half.wanted, half.confidence) == (4, 0.5)
    decode = PoolScaler(ScalingConfig(policy="utilization", target_utilization=0.5)).decide(
        pool(
            Role.DECODE,
            replicas=(ReplicaSignals(replica_id="0", num_running=48, max_running=64),),
        )
    )
    assert decode.wanted == 2


def test_a_schedule_raises_and_lowers_and_is_a_floor_for_other_policies() -> None:
    window = ScheduleWindow(start="0 12 * * 1-5", duration_s=3600, replicas=5)
    run = Run(ScalingConfig(policy="schedule", windows=(window,), down_cooldown_s=3), pool())
    sizes = [run.tick(now_s=NOON + at).target for at in (-60, -1, 0, 3599, 3600, 3601, 3602, 3603)]
    assert sizes[:5] == [1, 1, 5, 5, 1]
    assert run.tick(now_s=NOON + 3700).target == 1
    floor = PoolScaler(ScalingConfig(windows=(ALWAYS,))).decide(pool(demand=demand(0.1)))
    assert floor.target == 3
    assert "a window" in floor.reason


def test_growth_is_bounded_and_shrinking_waits_for_the_whole_cool_down() -> None:
    config = ScalingConfig(down_cooldown_s=20, up_cooldown_s=5, hysteresis=0.1)
    run = Run(config, pool())
    burst = demand(200.0)
    sizes = [run.tick(demand=burst).target for _ in range(30)]
    assert sizes[0] == 2
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(sizes))
    full = sizes[-1]
    assert full > 200.0 * H100_8B.prefill_pool.prefill.predict(2000)
    quiet = [run.tick(demand=demand(1.0)).target for _ in range(120)]
    assert quiet[10] == full
    assert quiet[-1] == 1
    assert quiet == sorted(quiet, reverse=True)


def test_replicas_that_start_are_not_asked_for_again() -> None:
    run = Run(ScalingConfig(up_cooldown_s=0), pool(), start_s=30.0)
    sizes = [run.tick(demand=demand(100.0)).target for _ in range(40)]
    alone = PoolScaler(ScalingConfig(up_cooldown_s=0)).decide(pool(demand=demand(100.0))).wanted
    assert max(sizes) == alone
    assert run.scaler.start_s == pytest.approx(30.0, abs=2.0)


def test_blind_or_half_blind_pools_do_not_shrink() -> None:
    config = ScalingConfig(policy="utilization", down_cooldown_s=0)
    blind = PoolScaler(config).decide(pool(size=8, replicas=()))
    assert blind.target == 8
    assert "no replica reports" in blind.reason
    scaler = PoolScaler(config)
    three = pool(size=8, replicas=pool(size=3).replicas)
    assert scaler.decide(three).target == 8
    assert "too few replicas report" in scaler.decide(three).reason
    assert scaler.decide(pool(size=8, replicas=pool(size=5).replicas)).target < 8
    unheard = PoolScaler(ScalingConfig()).decide(pool(size=4, demand=None))
    assert unheard.target == 4
    assert "no gateway reports" in unheard.reason


@pytest.mark.parametrize("policy", ["slo", "queue", "utilization"])
def test_an_idle_pool_goes_to_zero_and_wakes_for_one_request(policy: str) -> None:
    run = Run(ScalingConfig(policy=policy, down_cooldown_s=10), pool(min_replicas=0))
    for _ in range(5):
        run.tick(demand=demand(0.5))
    while run.state.num_target:
        before = run.state.now_s
        run.tick(demand=Demand())
        assert before < NOON + 300
    assert run.tick(demand=Demand()).target == 0
    assert run.tick(demand=Demand(waiting_requests=1, waiting_tokens=9)).target == 1


def test_a_dry_run_says_and_does_nothing() -> None:
    scaler = PoolScaler(ScalingConfig(dry_run=True))
    decision = scaler.decide(pool(demand=demand(100.0)))
    assert (decision.target, decision.applied) == (2, 1)
    assert decision.line().startswith("prefill would go from 1 to 2: slo: 100.00 requests/s")


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(SCALING_POLICIES),
    role=st.sampled_from([Role.PREFILL, Role.DECODE]),
    low=st.integers(0, 3),
    extra=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_bounds_hold_and_a_steady_load_does_not_oscillate(
    policy: str, role: Role, low: int, extra: int, seed: int
) -> None:
    rng = random.Random(seed)
    config = ScalingConfig(policy=policy, windows=(ALWAYS,), down_cooldown_s=10, up_cooldown_s=1)
    run = Run(config, pool(role, min_replicas=low, max_replicas=low + extra), start_s=3.0)
    for _ in range(40):
        seen = rng.randint(0, run.state.num_running)
        replicas = tuple(
            ReplicaSignals(
                replica_id=str(i),
                num_running=rng.randint(0, 64),
                max_running=64,
                queued_prefill_tokens=rng.randint(0, 50_000),
                busy=rng.random(),
                kv_use=rng.random(),
                prefill_tokens_per_s=rng.choice([0.0, 30_000.0]),
            )
            for i in range(seen)
        )
        wild = rng.choice([None, demand(10 ** rng.uniform(-2, 3))])
        decision = run.tick(replicas=replicas, demand=wild)
        assert low <= decision.target <= low + extra
        assert decision.reason
    changes = [0, 0]
    last = run.state.num_target
    for _ in range(60):
        work = 12.0 / max(1, run.state.num_running)
        replicas = tuple(
            ReplicaSignals(replica_id=str(i), busy=min(1, work), kv_use=min(1, work), num_running=4)
            for i in range(run.state.num_running)
        )
        run.tick(replicas=replicas, demand=demand(20.0))
        changes[run.state.num_target < last] += run.state.num_target != last
        last = run.state.num_target
    # It may find its size from either side, but does not swing around it.
    assert min(changes) <= 1


def test_forecasts_follow_ramps_and_do_not_run_away() -> None:
    flat, ramp = Forecast(), Forecast()
    for second in range(120):
        flat.add(10.0, float(second))
        ramp.add(float(second), float(second))
    assert flat.ahead(60.0) == pytest.approx(10.0)
    assert ramp.ahead(30.0) == pytest.approx(149.0, rel=0.15)
    for second in range(120, 140):
        ramp.add(0.0, float(second))
    assert ramp.ahead(3600.0) <= 2 * ramp.ahead(0.0)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("30 8 * * *", "2026-11-23 08:30", "2026-11-23 08:31"),
        ("*/15 * * * 1-5", "2026-11-23 10:45", "2026-11-22 10:45"),
        ("0 0 1 * 0", "2026-11-22 00:00", "2026-11-23 00:00"),
        ("0 9-17/4 * * 7", "2026-11-22 13:00", "2026-11-22 12:00"),
        ("5 4 * 12,1 *", "2026-12-30 04:05", "2026-11-30 04:05"),
    ],
)
def test_cron(text: str, yes: str, no: str) -> None:
    cron = Cron.parse(text)
    assert cron.matches(datetime.fromisoformat(yes))
    assert not cron.matches(datetime.fromisoformat(no))


def test_windows_keep_to_their_timezone_and_length() -> None:
    berlin = ScheduleWindow(start="0 9 * * *", duration_s=90, replicas=1, timezone="Europe/Berlin")
    nine = datetime(2026, 11, 23, 8, 0, tzinfo=UTC).timestamp()
    active = [berlin.active(nine + at) for at in (-0.5, 0, 60, 89.5, 90)]
    assert active == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"start": "0 8 * *", "duration_s": 60, "replicas": 1}, "start"),
        ({"start": "61 8 * * *", "duration_s": 60, "replicas": 1}, "start"),
        ({"start": "* * * * *", "duration_s": 1, "replicas": 1}, "duration_s"),
        ({"start": "* * * * *", "duration_s": 60, "replicas": 1, "timezone": "Mars"}, "timezone"),
    ],
)
def test_wrong_windows_are_refused_by_name(wrong: dict[str, object], param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScheduleWindow(**wrong)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_wrong_scaling_is_refused_by_name() -> None:
    for name, value in (("policy", "magic"), ("max_growth", 1.0), ("slo_percentile", 95)):
        with pytest.raises(ConfigError) as caught:
            ScalingConfig(**{name: value})  # type: ignore[arg-type]
        assert caught.value.param == name
    with pytest.raises(ConfigError, match="windows is empty"):
        ScalingConfig(policy="schedule")


def test_lengths_at_random_do_not_make_a_small_pool_swing() -> None:
    rng = random.Random(1)
    config = ScalingConfig(policy="slo", ttft_slo_s=3.0, start_s=65.0)
    scalers = {role: PoolScaler(config) for role in (Role.PREFILL, Role.DECODE)}
    wanted = []
    for second in range(600):
        lengths = [rng.lognormvariate(9, 0.6) for _ in range(rng.choice((1, 2, 3)))]
        kv = sum(rng.lognormvariate(9, 0.6) for _ in range(8))
        came = Demand(
            requests_per_s=len(lengths),
            prompt_tokens_per_s=sum(lengths),
            prompt_squares_per_s=sum(length**2 for length in lengths),
            output_tokens_per_s=len(lengths) * 320,
            prefill=H100_8B.prefill_pool,
            decode=H100_8B.decode_pool,
        )
        report = ReplicaSignals(
            replica_id="0", num_running=8, kv_tokens=int(kv), kv_capacity_tokens=444_000
        )
        for role, scaler in scalers.items():
            state = pool(role, now_s=NOON + second, replicas=(report,), demand=came)
            wanted.append(scaler.decide(state).wanted)
    assert sum(each > 1 for each in wanted) < 12
