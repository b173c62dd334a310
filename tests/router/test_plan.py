from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from baton.protos.errors import ConfigError, UnavailableError
from baton.protos.types import KvEvents, Member, Role, TierLoad, WorkerLoad
from baton.router.config import POLICY_NAMES, RouterConfig
from baton.router.decision import Chain
from baton.router.plan import POLICIES, Plan, RouteRequest, plan
from baton.router.prefix_index import PrefixIndex
from baton.router.times import Transfers, TransferTimes
from baton.router.view import ClusterView, WorkerState, WorkerView

# What a worker on two CPU cores with the small model reports after its first steps.
CPU = WorkerLoad(
    prefill_tokens_per_s=3_000, decode_step_s=0.02, total_blocks=4096, free_blocks=4000
)
IDLE = WorkerLoad()


def worker(
    worker_id: str, load: WorkerLoad = IDLE, *, rack: str = "", **view: object
) -> WorkerView:
    role = Role.PREFILL if worker_id.startswith("p") else Role.DECODE
    member = Member(
        worker_id=worker_id, incarnation="1", role=role, address="", model="m", rack=rack
    )
    return WorkerView(member, load, **{"age_s": 0.1, **view})  # type: ignore[arg-type]


def cluster(*workers: WorkerView) -> ClusterView:
    return ClusterView(
        tuple(w for w in workers if w.member.role is Role.DECODE),
        tuple(w for w in workers if w.member.role is Role.PREFILL),
    )


def hashes(num_blocks: int) -> list[bytes]:
    return [i.to_bytes(16, "little") for i in range(num_blocks)]


def cached(**num_blocks: int) -> PrefixIndex:
    index = PrefixIndex()
    for worker_id, count in num_blocks.items():
        index.apply(worker_id, KvEvents(stored=tuple(hashes(count))))
    return index


def decide(
    workers: Sequence[WorkerView],
    num_tokens: int = 200,
    *,
    index: PrefixIndex | None = None,
    config: RouterConfig | None = None,
    **request: object,
) -> Plan:
    route = RouteRequest(
        request_id="r",
        num_prompt_tokens=num_tokens,
        block_hashes=hashes(num_tokens // 16),
        **request,  # type: ignore[arg-type]
    )
    return plan(
        cluster(*workers),
        index or PrefixIndex(),
        route,
        config or RouterConfig(),
        random.Random(0),
    )


def where(chosen: Plan) -> tuple[str, str, str]:
    prefill = chosen.prefill[0].worker_id if chosen.prefill else "local"
    return chosen.decode.worker_id, prefill, chosen.reason


@pytest.mark.parametrize("load", [IDLE, CPU], ids=["unmeasured", "cpu"])
@pytest.mark.parametrize("num_tokens", [9, 30, 100, 1_000, 7_000])
def test_a_fresh_prompt_on_an_idle_cluster_goes_to_the_prefill_worker(
    load: WorkerLoad, num_tokens: int
) -> None:
    d, p, reason = where(decide([worker("d0", load), worker("p0", load)], num_tokens))
    assert (d, p) == ("d0", "p0")
    assert reason in ("remote_idle", "remote_cheaper")


def test_one_measured_worker_does_not_send_everything_to_the_unmeasured() -> None:
    assert where(decide([worker("d0"), worker("p0", CPU)], 1_000))[1] == "p0"
    assert where(decide([worker("d0", CPU), worker("p0")], 1_000))[1] == "p0"


def test_a_nearly_cached_prompt_stays_local() -> None:
    pair = [worker("d0"), worker("p0")]
    tail = decide(pair, 175, index=cached(d0=10))
    assert where(tail) == ("d0", "local", "short_uncached_tail")
    assert tail.num_cached_tokens == 160
    whole = decide(pair, 160, index=cached(d0=10))
    assert where(whole) == ("d0", "local", "short_uncached_tail")
    half = decide(pair, 170, index=cached(d0=5))
    assert where(half)[1] == "p0"


def test_a_cached_tail_is_not_bounced_to_another_worker_for_an_idle_prefill_worker() -> None:
    # The tail was measured: five tokens took a whole step.
    slow_tail = worker("d0", WorkerLoad(prefill_tokens_per_s=250, decode_step_s=0.02))
    prefill = worker("p0", WorkerLoad(prefill_tokens_per_s=850))
    chosen = decide([slow_tail, worker("d1"), prefill], 21, index=cached(d0=1))
    assert where(chosen) == ("d0", "local", "short_uncached_tail")


def test_a_long_queue_at_the_prefill_worker_makes_local_cheaper() -> None:
    queue = WorkerLoad(queued_prefill_tokens=100_000, num_waiting=9)
    assert where(decide([worker("d0"), worker("p0", queue)])) == ("d0", "local", "local_cheaper")
    in_flight = worker("p0", in_flight_tokens=100_000, in_flight_requests=9)
    assert where(decide([worker("d0"), in_flight])) == ("d0", "local", "local_cheaper")


def test_running_decodes_near_their_objective_make_a_queue_worth_waiting_for() -> None:
    queued = worker("p0", WorkerLoad(queued_prefill_tokens=2_000, num_running=1))
    busy = worker("d0", WorkerLoad(num_running=6))
    # They have time to spare, so the decode worker computes the prompt beside them.
    assert where(decide([busy, queued], 1_000)) == ("d0", "local", "local_cheaper")
    strict = RouterConfig(itl_slo_s=0.008)
    assert where(decide([busy, queued], 1_000, config=strict)) == ("d0", "p0", "remote_cheaper")


def test_the_prefix_decides_between_decode_workers_until_load_outweighs_it() -> None:
    index = cached(d1=50)
    assert where(decide([worker("d0"), worker("d1")], 810, index=index))[0] == "d1"
    busy = worker("d1", WorkerLoad(num_running=200, decode_step_s=0.02))
    assert where(decide([worker("d0"), busy], 810, index=index, max_tokens=500))[0] == "d0"


def test_a_prefill_workers_own_prefix_counts() -> None:
    pool = [worker("d0"), worker("p0"), worker("p1")]
    chosen = decide(pool, 1_000, index=cached(p1=60))
    assert [target.worker_id for target in chosen.prefill] == ["p1", "p0"]


def kept(worker_id: str, num_blocks: int, index: PrefixIndex | None = None) -> PrefixIndex:
    index = index or PrefixIndex()
    index.apply(worker_id, KvEvents(kept=tuple(hashes(num_blocks))))
    return index


def loading(load_s_per_token: float) -> WorkerLoad:
    return WorkerLoad(tiers=(TierLoad("cpu", 50, 100, 0, 0, 0, 0, 0, load_s_per_token),))


def test_a_prefix_in_a_slower_tier_counts_by_the_time_to_load_it() -> None:
    quick, slow = loading(1e-6), loading(1.0)
    pool = [worker("d0"), worker("d1", quick)]
    chosen = decide(pool, 8_100, index=kept("d1", 500))
    assert where(chosen)[:2] == ("d1", "local")
    # As far as it may be: loading costs something, computing the same would cost more.
    cached_s = decide(pool, 8_100, index=cached(d1=500)).ttft_s
    computed_s = decide(pool, 8_100).ttft_s
    assert cached_s < chosen.ttft_s < computed_s
    # What takes longer to load than to compute is as good as not there.
    too_slow = decide([worker("d0", slow), worker("d1", slow)], 8_100, index=kept("d1", 500))
    assert too_slow.ttft_s == pytest.approx(computed_s)
    # A prefix in a pool is better than the same in a slower tier.
    both = kept("d1", 500, cached(d0=500))
    assert where(decide([worker("d0"), worker("d1", loading(1e-5))], 8_100, index=both))[0] == "d0"
    remote = [worker("d0"), worker("p0"), worker("p1", quick)]
    config = RouterConfig(policy="always_remote")
    assert where(decide(remote, 8_100, index=kept("p1", 500), config=config))[1] == "p1"
    assert decide(pool, 8_100, index=kept("d1", 500), prompt_logprobs=True).ttft_s >= computed_s


def test_each_tier_counts_at_its_own_rate() -> None:
    """A prefix half in host memory, half on a disk that is too slow to wait for."""
    tiers = [
        TierLoad(name, 50, 100, 0, 0, 0, 0, 0, s) for name, s in (("cpu", 1e-6), ("disk", 1.0))
    ]
    pool = [worker("d0"), worker("d1", WorkerLoad(tiers=tuple(tiers)))]
    index = kept("d1", 500)
    computed_s = decide(pool, 8_100).ttft_s
    assert decide(pool, 8_100, index=index).ttft_s == pytest.approx(computed_s)
    index.apply("d1", KvEvents(near=tuple(hashes(250))))
    half = decide(pool, 8_100, index=index)
    assert where(half)[:2] == ("d1", "local")
    index.apply("d1", KvEvents(near=tuple(hashes(500))))
    assert decide(pool, 8_100, index=index).ttft_s < half.ttft_s < computed_s


def test_the_next_turn_may_come_from_the_slower_tiers_of_who_decoded() -> None:
    remote = RouterConfig(policy="always_remote")
    for load_s, pulls in ((1e-6, True), (1.0, False)):
        pool = [worker("d0", loading(load_s)), worker("d1"), worker("p0")]
        chosen = decide(pool, 4_000, index=kept("d0", 180, cached(p0=60)), config=remote)
        assert (chosen.pull_from == pool[0].member) is pulls


def test_the_next_turn_is_fetched_from_who_decoded_the_last_one() -> None:
    """Where that is quicker than computing it again, for whoever decodes it."""
    pool = [worker("d0"), worker("d1"), worker("p0")]
    remote = RouterConfig(policy="always_remote")
    # The prefill worker has the first prompt, the decode worker also what it answered.
    chosen = decide(pool, 4_000, index=cached(d0=180, p0=60), config=remote)
    assert where(chosen) == ("d0", "p0", "always_remote,pull")
    assert chosen.pull_from == pool[0].member
    assert chosen.num_new_tokens == 4_000 - 180 * 16
    assert "pull_from=d0" in chosen.header()
    # Another worker may decode it.
    busy = worker("d0", WorkerLoad(num_running=200, running_kv_tokens=400_000, itl_s=0.2))
    chosen = decide([busy, *pool[1:]], 4_000, index=cached(d0=180, p0=60), config=remote)
    assert where(chosen) == ("d1", "p0", "always_remote,pull")
    assert chosen.pull_from == pool[0].member
    for index in (cached(d0=60, p0=60), cached(d0=61, p0=60), cached(p0=60), PrefixIndex()):
        chosen = decide(pool, 4_000, index=index, config=remote)
        assert chosen.pull_from is None
        assert chosen.reason == "always_remote"


def test_what_left_every_tier_counts_no_more() -> None:
    index = kept("d1", 50)
    assert index.kept([Chain(1, hashes(60))]) == {"d1": (50, 0)}
    index.apply("d1", KvEvents(lost=tuple(hashes(50)[40:]), near=tuple(hashes(30))))
    assert index.kept([Chain(1, hashes(60))]) == {"d1": (40, 30)}
    index.apply("d1", KvEvents(far=tuple(hashes(30)[20:])))
    assert index.kept([Chain(1, hashes(60))]) == {"d1": (40, 20)}
    index.apply("d1", KvEvents(cleared=True, kept=tuple(hashes(10))))
    assert index.kept([Chain(1, hashes(60))]) == {"d1": (10, 0)}
    index.remove_worker("d1")
    assert index.kept([Chain(1, hashes(60))]) == {}


def test_a_full_decode_worker_is_avoided() -> None:
    full = worker("d0", WorkerLoad(total_blocks=100, free_blocks=2))
    room = worker("d1", WorkerLoad(total_blocks=100, free_blocks=90, num_running=4))
    assert where(decide([full, room]))[0] == "d1"


def test_without_prefill_workers_or_for_prompt_logprobs_it_is_local() -> None:
    assert where(decide([worker("d0")])) == ("d0", "local", "no_prefill_worker")
    draining = worker("p0", WorkerLoad(draining=True))
    assert where(decide([worker("d0"), draining])) == ("d0", "local", "no_prefill_worker")
    pair = [worker("d0"), worker("p0")]
    chosen = decide(pair, prompt_logprobs=True, index=cached(d0=12))
    assert where(chosen) == ("d0", "local", "prompt_logprobs")
    assert chosen.num_cached_tokens == 0


def test_stale_views_are_named() -> None:
    stale_p = worker("p0", age_s=60.0)
    assert where(decide([worker("d0"), stale_p])) == ("d0", "local", "stale_prefill_view")
    # A stale worker is not believed where a fresh one is to be had, however idle it looked.
    fresh_but_busy = worker("d1", WorkerLoad(num_running=50))
    assert where(decide([worker("d0", age_s=60.0), fresh_but_busy]))[0] == "d1"
    all_stale = [
        worker("d0", age_s=60.0, in_flight_requests=3),
        worker("d1", WorkerLoad(num_running=99), age_s=60.0, in_flight_requests=1),
        worker("p0"),
    ]
    assert where(decide(all_stale)) == ("d1", "p0", "stale_view")


def test_excluded_draining_and_unconnected_workers_are_not_planned_for() -> None:
    draining = worker("d1", WorkerLoad(draining=True))
    lost = worker("d2", state=WorkerState.CONNECTING)
    workers = [worker("d0"), draining, lost, worker("d3")]
    assert where(decide(workers, exclude=frozenset({"d0"})))[0] == "d3"
    with pytest.raises(UnavailableError, match="of 4 known, 1 are draining and 2 already failed"):
        decide(workers, exclude=frozenset({"d0", "d3"}))
    with pytest.raises(UnavailableError, match="of 0 known"):
        decide([worker("p0")])


def test_stick_to() -> None:
    workers = [worker("d0"), worker("d1", WorkerLoad(num_running=90)), worker("p0")]
    assert where(decide(workers, stick_to="d1")) == ("d1", "local", "stick_to")
    assert where(decide(workers, stick_to="gone"))[0] == "d0"


def test_ties_are_random_and_the_same_rng_gives_the_same_plan() -> None:
    view = cluster(*[worker(f"d{i}") for i in range(4)], *[worker(f"p{i}") for i in range(4)])
    route = RouteRequest(request_id="r", num_prompt_tokens=200)

    def run(seed: int) -> list[tuple[str, str, str]]:
        rng = random.Random(seed)
        return [where(plan(view, PrefixIndex(), route, RouterConfig(), rng)) for _ in range(200)]

    assert run(1) == run(1)
    counts = Counter((d, p) for d, p, _ in run(1))
    assert len(counts) == 16


def by(name: str, workers: Sequence[WorkerView], num_tokens: int = 200, **request: object) -> Plan:
    return decide(workers, num_tokens, config=RouterConfig(policy=name), **request)  # type: ignore[arg-type]


def test_policies_by_name() -> None:
    assert set(POLICY_NAMES) == set(POLICIES)
    pool = [worker("d0"), worker("d1"), worker("p0"), worker("p1")]
    queue = [worker("d0"), worker("p0", WorkerLoad(queued_prefill_tokens=10**6))]
    assert where(by("always_local", queue)) == ("d0", "local", "always_local")
    assert where(by("always_remote", queue)) == ("d0", "p0", "always_remote")
    assert where(by("always_remote", [worker("d0")])) == ("d0", "local", "no_prefill_worker")
    turns = [where(by("round_robin", pool, sequence=i)) for i in range(3)]
    assert [turn[:2] for turn in turns] == [("d0", "p0"), ("d1", "p1"), ("d0", "p0")]
    for name in POLICY_NAMES:
        assert where(by(name, pool, prompt_logprobs=True))[1] == "local"
        assert by(name, [worker("d0"), worker("d1", age_s=60.0)]).decode.worker_id == "d0"


def test_the_published_threshold_rules() -> None:
    pair = [worker("d0"), worker("p0")]
    queue = [worker("d0"), worker("p0", WorkerLoad(num_running=1, num_waiting=2))]
    assert where(by("threshold", pair, 1000))[1:] == ("local", "threshold_short")
    assert where(by("threshold", pair, 1001))[1:] == ("p0", "threshold_remote")
    assert where(by("threshold", queue, 1001))[1:] == ("local", "threshold_queue_full")
    # Short by tokens, but all of it is to be computed; then nearly all of it is cached.
    assert where(by("isl_bounding", pair, 1600))[1:] == ("p0", "isl_remote")
    cached_half = cached(d0=50)
    assert where(by("isl_bounding", pair, 1600, index=cached_half))[1:] == ("local", "isl_short")
    assert where(by("isl_bounding", pair, 8000, index=cached_half))[1:] == ("p0", "isl_remote")
    busy = [worker("d0"), worker("p0", WorkerLoad(queued_prefill_tokens=20_000))]
    assert where(by("isl_or_load", busy, 8000))[1:] == ("local", "isl_prefill_busy")
    assert where(by("isl_or_load", pair, 8000))[1:] == ("p0", "isl_remote")


def test_splitwise_borrows_a_decode_worker_when_the_prompt_pool_is_full() -> None:
    pool = [worker("d0", WorkerLoad(queued_prefill_tokens=9)), worker("d1"), worker("p0")]
    assert where(by("splitwise", pool, 9000))[1:] == ("p0", "splitwise")
    full = [*pool[:2], worker("p0", WorkerLoad(queued_prefill_tokens=8000))]
    assert where(by("splitwise", full, 9000)) == ("d1", "local", "splitwise_mixed")


def test_load_and_prefix_rules() -> None:
    busy = WorkerLoad(num_running=5, queued_prefill_tokens=500)
    pool = [worker("d0", busy), worker("d1"), worker("p0", busy), worker("p1")]
    for name in ("least_loaded", "power_of_two"):
        assert where(by(name, pool)) == ("d1", "p1", name)
    index = cached(d0=3, p0=2)
    assert where(by("prefix_aware", pool, index=index)) == ("d0", "p0", "prefix_aware")
    assert where(by("prefix_aware", pool)) == ("d1", "p1", "prefix_aware")


def test_adapters_sessions_and_topology_enter_the_cost() -> None:
    resident = worker("d1", adapters=frozenset({"sql"}))
    chosen = decide([worker("d0"), resident], adapter="sql")
    assert chosen.decode.worker_id == "d1"
    assert "adapter_cold" not in chosen.reason
    # It would be copied to two devices instead of one.
    cold = decide([worker("d0"), worker("p0")], adapter="sql")
    assert cold.reason == "local_cheaper,adapter_cold"
    warm = decide([worker("d0"), worker("p0", adapters=frozenset({"sql"}))], adapter="sql")
    assert warm.reason == "remote_idle,adapter_cold"
    assert by("round_robin", [worker("d0")], adapter="sql").reason.endswith(",adapter_cold")
    pair = [worker("d0"), worker("d1")]
    assert {where(decide(pair, last_worker=name))[0] for name in ("d0", "d1")} == {"d0", "d1"}
    slow, fast = TransferTimes(fixed_s=0.1, per_byte_s=1e-9), TransferTimes(fixed_s=0, per_byte_s=0)
    transfers = Transfers((slow, fast, fast))
    near, far = worker("p0", rack="a"), worker("p1", rack="b")
    view = ClusterView((worker("d0", rack="b"),), (near, far), transfers)
    route = RouteRequest(request_id="r", num_prompt_tokens=200)
    chosen = plan(view, PrefixIndex(), route, RouterConfig(), random.Random(0))
    assert chosen.prefill[0].worker_id == "p1"


def test_a_data_parallel_group_goes_at_the_pace_of_its_slowest() -> None:
    slow = WorkerLoad(num_running=100, running_kv_tokens=400_000)
    group = [worker("d0", group="g"), worker("d1", slow, group="g"), worker("d2")]
    assert where(decide(group, max_tokens=500))[0] == "d2"


def test_a_worker_whose_cache_is_not_known_shows_in_the_reason() -> None:
    chosen = decide([worker("d0", kv_blind=True), worker("p0")])
    assert chosen.reason == "remote_idle,kv_blind"


def test_a_plan_explains_itself() -> None:
    chosen = decide([worker("d0"), worker("p0")], 100)
    assert chosen.header() == (
        "decode=d0 prefill=p0 reason=remote_idle ttft_ms=11.0 cached_tokens=0"
    )
    lines = chosen.explain().splitlines()
    assert lines[1].startswith("  decode=d0 prefill=p0 ttft=")
    assert lines[2].startswith("  decode=d0 prefill=local ttft=")
    for option in chosen.candidates:
        assert sum(option[2:-1]) == pytest.approx(option.cost_s)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "best"),
        ("stale_after_s", 0.0),
        ("itl_weight", -1.0),
        ("ttft_slo_s", float("nan")),
    ],
)
def test_configuration_is_checked(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is") as caught:
        RouterConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


def test_those_that_wait_behind_a_long_queue_do_not_keep_prompts_off_a_decode_worker() -> None:
    room = {"total_blocks": 30_000, "free_blocks": 25_000}
    decode = worker(
        "d0",
        WorkerLoad(num_running=6, num_waiting=150, running_kv_tokens=60_000, **room),
    )
    queue = worker("p0", WorkerLoad(num_waiting=150, queued_prefill_tokens=1_500_000))
    assert decide([decode, queue], 8000, max_tokens=300).reason == "local_cheaper"
    # They will all be there at once where nothing holds them up.
    soon = worker("p0", WorkerLoad(num_waiting=1, queued_prefill_tokens=4000))
    assert decide([decode, soon], 8000, max_tokens=300).prefill
