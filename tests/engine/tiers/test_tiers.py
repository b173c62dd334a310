"""Blocks that left the pool come back, in time or not at all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.engine.driving import VOCAB, save_model
from tests.engine.fakes import Collector, generate
from tests.engine.tiers.lanes import TieredEngine

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.engine.parallel.hosts import RankHost
from baton.engine.tiers.statistics import TierStatistics
from baton.kvtransfer.tiers.config import TierConfig
from baton.kvtransfer.tiers.disk import DiskTier
from baton.protos.errors import ConfigError
from baton.protos.types import StepOutput

WAIT_S = 30.0
MODEL_BLOCK_BYTES = 3 * 2 * 2 * 8 * 16 * 4


def serve(fake: TieredEngine, name: str, prompt: list[int]) -> int:
    """Runs one request to its end; how many of its tokens were not computed."""
    collector = Collector(fake.engine)
    request = generate(name, prompt, max_tokens=1)
    fake.engine.add(request)
    cached = 0
    for _ in range(100):
        fake.lanes.run_all()
        if fake.engine.has_work():
            before = fake.engine.statistics().num_prefill_tokens
            collector.step()
            cached -= fake.engine.statistics().num_prefill_tokens - before
    collector.check_answer(request)
    return cached + len(prompt)


def statistics(fake: TieredEngine) -> TierStatistics:
    found = fake.engine.statistics().tiers
    assert found is not None
    return found


def test_an_evicted_prefix_comes_back_from_host_memory() -> None:
    fake = TieredEngine()
    first, second = list(range(1, 14)), list(range(20, 33))
    assert serve(fake, "a", first) == 0
    assert serve(fake, "b", second) == 0
    assert serve(fake, "c", [*first[:9], 5]) == 8
    found = statistics(fake)
    assert found.num_host + found.num_pool == 4
    assert found.num_host > 0
    assert found.load_s_per_block == 0.0
    fake.engine.check_integrity()


def test_what_host_memory_lost_comes_back_from_disk(tmp_path: Path) -> None:
    fake = TieredEngine(tmp_path, num_blocks=8, cpu_blocks=12)
    prompts = [[number] * 12 + [1] for number in range(1, 8)]
    for prompt in prompts:
        assert serve(fake, f"first{prompt}", prompt) == 0
    for prompt in prompts:
        assert serve(fake, f"again{prompt}", prompt) == 12
    disk = statistics(fake).lower[0]
    assert disk.num_hits > 0
    assert disk.name == "disk"
    assert statistics(fake).host.num_blocks == 12
    fake.engine.close()

    later = TieredEngine(tmp_path, num_blocks=8, cpu_blocks=12)
    assert serve(later, "later", prompts[6]) == 12
    later.engine.check_integrity()


def test_other_salts_share_nothing(tmp_path: Path) -> None:
    fake = TieredEngine(tmp_path)
    prompt = list(range(1, 14))
    serve(fake, "a", prompt)
    serve(fake, "b", list(range(20, 33)))
    request = generate("c", prompt, max_tokens=1, cache_salt=b"another tenant")
    collector = Collector(fake.engine)
    fake.engine.add(request)
    for _ in range(20):
        fake.lanes.run_all()
        collector.run()
    collector.check_answer(request)
    assert statistics(fake).num_host == 0


def test_a_copy_that_is_too_late_is_thrown_away() -> None:
    fake = TieredEngine()
    collector = Collector(fake.engine)
    for number in range(1, 4):
        fake.engine.add(generate(f"r{number}", [number] * 13, max_tokens=1))
        collector.run()
    found = statistics(fake)
    assert found.num_stored == 0
    assert found.num_dropped > 0
    fake.lanes.run_all()
    collector.run()
    assert found.num_dropped <= statistics(fake).num_dropped
    fake.engine.check_integrity()


@pytest.mark.parametrize("quarantine", [False, True])
def test_blocks_of_an_aborted_load_are_nobodys_until_the_copy_is_over(quarantine: bool) -> None:
    fake = TieredEngine()
    first = list(range(1, 14))
    serve(fake, "a", first)
    serve(fake, "b", list(range(20, 33)))
    fake.engine.add(generate("c", first, max_tokens=1))
    fake.engine.step()
    assert fake.engine.statistics().requests.num_waiting == 1
    assert fake.engine.abort("c", quarantine=quarantine)
    assert fake.engine.load().free_blocks < fake.engine.load().total_blocks
    fake.engine.check_integrity()
    fake.engine.release("c")
    assert fake.engine.load().free_blocks < fake.engine.load().total_blocks
    fake.lanes.run_all()
    assert fake.engine.has_work()
    fake.engine.step()
    assert fake.engine.load().free_blocks == fake.engine.load().total_blocks
    fake.engine.check_integrity()


def test_a_tier_that_hangs_does_not_take_host_memory_with_it(tmp_path: Path) -> None:
    fake = TieredEngine(tmp_path, cpu_blocks=32)
    collector = Collector(fake.engine)
    for number in range(1, 12):
        fake.engine.add(generate(f"r{number}", [number] * 13, max_tokens=1))
        for _ in range(20):
            fake.clock.advance(10.0)
            collector.run()
            fake.lanes.made["out"].run_one()
            fake.lanes.made["in"].run_one()
    found = statistics(fake)
    assert found.num_stored > 32
    assert found.lower[0].num_dropped > 0
    assert 0 < found.host.num_in_use <= 8
    # What waited for the tier goes there now.
    for _ in range(20):
        fake.lanes.run_all()
        collector.run()
    assert statistics(fake).host.num_in_use == 0
    assert statistics(fake).lower[0].num_stored > found.lower[0].num_stored + 8


def test_a_tier_that_hangs_delays_a_request_only_so_long(tmp_path: Path) -> None:
    fake = TieredEngine(tmp_path)
    request = generate("r", list(range(1, 14)), max_tokens=1)
    fake.lanes.run_all()
    fake.engine.step()
    fake.engine.add(request)
    assert not fake.engine.has_work()
    idle_s = fake.engine.idle_s
    assert idle_s is not None
    fake.clock.advance(idle_s)
    assert fake.engine.has_work()
    collector = Collector(fake.engine)
    collector.run()
    collector.check_answer(request)
    assert fake.engine.idle_s is None


def test_blocks_that_are_computed_sooner_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = TieredEngine(tmp_path, cpu_blocks=12)
    prompts = [[number] * 12 + [1] for number in range(1, 6)]
    for prompt in prompts:
        serve(fake, f"first{prompt}", prompt)
    load = DiskTier.load

    def load_slowly(tier: DiskTier, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        fake.clock.advance(60.0)
        return load(tier, hashes, slots)

    monkeypatch.setattr(DiskTier, "load", load_slowly)
    serve(fake, "slow", prompts[0])
    monkeypatch.undo()
    before = statistics(fake).lower[0]
    assert before.load_s_per_block > 1.0
    serve(fake, "declined", prompts[1])
    assert statistics(fake).lower[0].num_wanted == before.num_wanted
    # What keeps everybody away is tried again some time.
    for number in range(1000):
        serve(fake, f"r{number}", prompts[number % 5])
        if statistics(fake).lower[0].num_wanted > before.num_wanted:
            return
    raise AssertionError("never tried again")


def test_routers_hear_what_is_kept_anywhere(tmp_path: Path) -> None:
    fake = TieredEngine(tmp_path, cpu_blocks=12)
    kept: set[bytes] = set()
    for number in range(1, 6):
        serve(fake, f"r{number}", [number] * 13)
        events = fake.engine.drain_kv_events()
        kept = (kept - set(events.lost)) | set(events.kept)
    pool = set(fake.engine.snapshot_kv().stored)
    assert kept == set(fake.engine.snapshot_kv().kept)
    assert pool < kept
    fake.engine.close()
    later = TieredEngine(tmp_path, cpu_blocks=12)
    later.lanes.run_all()
    serve(later, "one more", [1, 2, 3])
    left = set(later.engine.drain_kv_events().kept)
    assert left
    assert len(left & kept) >= len(left) - 1


class Served:
    """A real engine on real threads, on a pool that holds one of the prompts at a time."""

    def __init__(
        self, folder: Path, tiers: TierConfig, ranks: RankHost | None = None, **config: object
    ) -> None:
        values: dict[str, object] = {
            "model_dir": str(folder),
            "device": "cpu",
            "block_size": 8,
            "num_blocks": 14,
            "max_running": 4,
            "max_step_tokens": 32,
            "self_check": True,
            "kv_tiers": tiers,
        }
        self.engine = Engine(EngineConfig(**{**values, **config}), ranks=ranks)  # type: ignore[arg-type]
        self._tokens: dict[str, list[int]] = {}
        self._finished: set[str] = set()
        self._changed = threading.Condition()
        self._deaths: list[BaseException] = []
        self._loop = EngineLoop(self.engine, self._on_step, self._deaths.append)
        self._loop.start()

    def answer(self, name: str, prompt: list[int]) -> list[int]:
        """Greedy tokens."""
        request = generate(name, prompt, max_tokens=8)
        self._loop.call(lambda engine: engine.add(request)).result(WAIT_S)
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._finished, WAIT_S)
        return self._tokens[name]

    def lent(self, prompt: list[int], *, near: bool = False) -> int:
        """How many blocks of the prompt could be lent to another worker."""
        prefix = generate("lent", prompt, max_tokens=1)

        def lend(engine: Engine) -> int:
            found = engine.lend("move", prefix)
            engine.end_move("move")
            return len(found)

        return self._loop.call_recalled(prefix, lend, near=near).result(WAIT_S)

    def close(self) -> TierStatistics | None:
        """What its tiers did."""
        self._loop.stop()
        assert self._deaths == []
        self.engine.check_integrity()
        found = self.engine.statistics().tiers
        self.engine.close()
        return found

    def _on_step(self, output: StepOutput) -> None:
        with self._changed:
            for one in output.outputs:
                self._tokens.setdefault(one.request_id, []).extend(one.token_ids)
                if one.finish_reason is not None:
                    self._finished.add(one.request_id)
            self._changed.notify()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "Llama")
    return path


def test_a_model_answers_alike_wherever_its_kv_was(folder: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, VOCAB, (100,), generator=generator).tolist() for _ in range(4)]
    rounds = [(f"{again}.{number}", prompts[number]) for again in range(3) for number in range(4)]
    plain = Served(folder, TierConfig())
    expected = {name: plain.answer(name, prompt) for name, prompt in rounds}
    assert plain.close() is None

    # Host memory holds every prompt; then it holds one, and the disk all of them.
    for cpu_blocks, below in ((64, 0.0), (24, 1.0)):
        config = TierConfig(
            cpu_gib=cpu_blocks * MODEL_BLOCK_BYTES / (1 << 30),
            disk_path=str(tmp_path) if below else "",
            disk_gib=below,
        )
        served = Served(folder, config)
        assert {name: served.answer(name, prompt) for name, prompt in rounds} == expected
        # Of 100 tokens 99 may be found: 12 blocks of 8. Only the last prompt's are in the pool.
        assert served.lent(prompts[0], near=True) == (0 if below else 12)
        assert served.lent(prompts[1]) == 12
        found = served.close()
        assert found is not None
        assert found.num_host > 0
        assert found.host.num_blocks == cpu_blocks
        assert sum(tier.num_hits for tier in found.lower) > 0 or not below

    # Another process finds them on disk, and none in its own memory.
    later = Served(folder, config)
    assert {name: later.answer(name, prompt) for name, prompt in rounds} == expected
    found = later.close()
    assert found is not None
    assert found.lower[0].num_hits > 0


def test_tiers_need_a_prefix_cache() -> None:
    with pytest.raises(ConfigError, match="without prefix_cache") as refused:
        EngineConfig(model_dir="m", kv_tiers=TierConfig(cpu_gib=1.0), prefix_cache=False)
    assert refused.value.param == "kv_tiers.cpu_gib"


def test_a_size_below_one_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"less than a KV block of 16 bytes") as refused:
        TieredEngine(cpu_blocks=0.5)  # type: ignore[arg-type]
    assert refused.value.param == "kv_tiers.cpu_gib"
