"""Ranks as processes, and what happens when one is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest
from tests.engine.driving import save_model
from tests.engine.parallel.ranks import ThreadRanks

from baton.engine.config import EngineConfig
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.engine.parallel.hosts import ProcessRanks, RankHandle
from baton.engine.parallel.links import RankListener, RankSpec, connect
from baton.kvtransfer.connector import PeerKey
from baton.protos.errors import ModelLoadError, WorkerLostError
from baton.protos.types import GenerateRequest, SamplingParams, StepOutput

# Generous: a loaded machine starts an interpreter with torch slowly.
HANG_S = 60.0
FOREVER = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)


def config_of(folder: Path, size: int = 2) -> EngineConfig:
    return EngineConfig(
        model_dir=str(folder), device="cpu", num_blocks=64, tensor_parallel_size=size
    )


def rank_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "baton.engine.parallel.process" in child.cmdline()
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, "Qwen3", head_dim=16)
    return tmp_path


def request_of(sampling: SamplingParams) -> GenerateRequest:
    return GenerateRequest(request_id="r", prompt_token_ids=[5, 6, 7], sampling=sampling)


class FarRanks(ThreadRanks):
    """Ranks that listen at an address of their own, as on another machine."""

    def start(self, spec: RankSpec) -> RankHandle:
        return super().start(replace(spec, own_host="127.0.0.2"))


def test_ranks_of_another_machine_listen_there(folder: Path) -> None:
    engine = Engine(config_of(folder), ranks=FarRanks())
    try:
        (rank,) = engine.other_pools
        key = PeerKey("w-rank1", "i", 1)
        connector = rank.open("nixl", key, "127.0.0.1", lambda _key, _notice: None)
        assert connector.local_info().key == key
        connector.close()
        engine.add(request_of(replace(FOREVER, max_tokens=4)))
        tokens = [t for _ in range(8) for o in engine.step().outputs for t in o.token_ids]
        assert len(tokens) == 4
    finally:
        engine.close()


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_killed_rank_ends_the_engine_at_once(folder: Path, busy: bool) -> None:
    engine = Engine(config_of(folder))
    steps: SimpleQueue[StepOutput] = SimpleQueue()
    deaths: SimpleQueue[BaseException] = SimpleQueue()
    loop = EngineLoop(engine, steps.put, deaths.put)
    loop.start()
    (rank,) = rank_processes()
    loop.call(lambda engine: engine.add(request_of(FOREVER if busy else SamplingParams(seed=0))))
    steps.get(timeout=HANG_S)
    os.kill(rank.pid, signal.SIGKILL)
    death = deaths.get(timeout=HANG_S)
    assert isinstance(death, WorkerLostError)
    assert str(death) == "rank 1 of 2 is gone: its process ended with -9"
    assert loop.call(Engine.load).exception(HANG_S) is death
    loop.stop()
    engine.close()
    assert rank_processes() == []


def test_closing_ends_the_processes(folder: Path) -> None:
    engine = Engine(config_of(folder, 2))
    engine.add(request_of(SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)))
    while engine.has_work():
        engine.step()
    (rank,) = rank_processes()
    engine.close()
    assert not rank.is_running()


class Misled(ProcessRanks):
    """Its ranks look for the model where none is."""

    def start(self, spec: RankSpec) -> RankHandle:
        folder = Path(spec.config.model_dir)
        (folder / "empty").mkdir()
        shutil.copy(folder / "config.json", folder / "empty")
        changed = replace(spec.config, model_dir=str(folder / "empty"))
        return super().start(replace(spec, config=changed))


def test_what_a_rank_is_refused_is_told_by_name(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^rank 1 of 2: .*empty: neither model.safetensors"):
        Engine(config_of(folder), ranks=Misled())
    assert rank_processes() == []


class DeadHost(ThreadRanks):
    """Its ranks end before they connect."""

    def start(self, spec: RankSpec) -> RankHandle:
        class Dead:
            def ended(self) -> str | None:
                return "its machine has no memory left"

            def stop(self) -> None: ...

        return Dead()


def test_a_rank_that_does_not_come_up_is_named(folder: Path) -> None:
    with pytest.raises(WorkerLostError, match="rank 1 of 2 did not start: its machine has no mem"):
        Engine(config_of(folder), ranks=DeadHost())


def test_nobody_gets_in_without_the_token(folder: Path) -> None:
    listener = RankListener("127.0.0.1", b"k" * 32)

    def spec(token: bytes) -> RankSpec:
        return RankSpec(
            config=config_of(folder),
            rank=1,
            host="127.0.0.1",
            port=listener.port,
            store_port=0,
            token=token,
            num_threads=1,
        )

    stranger = connect(spec(b"x" * 32))
    short = socket.create_connection(("127.0.0.1", listener.port))
    short.close()
    own = connect(spec(b"k" * 32))
    (link,) = listener.accept([1], lambda: None)
    assert stranger.receive_step() is None
    link.send_step(b"step")
    assert own.receive_step() == b"step"
    own.tell({"state": "ready"})
    assert link.hear() == {"state": "ready"}
    link.close()
    assert own.receive_step() is None
    for end in (stranger, own):
        end.close()
    listener.close()
