"""The application on a real Ray, with workers that have no model: membership, healing,
refusals, the end.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cluster.placeholders import (
    FlaggedWorker,
    PlaceholderGateway,
    PlaceholderWorker,
    UnloadableWorker,
)

from baton.cluster.config import BatonConfig, load_config
from baton.protos.errors import ConfigError, ModelLoadError
from baton.protos.types import Member

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    # Ray Serve's own use of pydantic.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Ray leaves pipes of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HEAL_S = 90.0


@dataclass
class Running:
    launcher: Any
    config: BatonConfig
    state_dir: Path
    flag: Path
    said: list[str]

    def wait(self, condition: Callable[[tuple[Member, ...]], bool]) -> tuple[Member, ...]:
        from baton.protos.errors import UnavailableError

        end_s = time.monotonic() + HEAL_S
        workers: tuple[Member, ...] = ()
        while time.monotonic() < end_s:
            try:
                workers = self.launcher.listing().workers
            except UnavailableError:
                time.sleep(0.2)
                continue
            if condition(workers):
                return workers
            time.sleep(0.2)
        raise AssertionError(f"not in time: {workers}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from baton.cluster.actors import Factories
    from baton.cluster.launcher import Launcher
    from baton.cluster.local_ray import make_state_dir, remove_state_dir

    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    config = load_config(
        None,
        {
            "model": (str(folder), "test"),
            "gateway.http_port": (0, "test"),
            "gateway.grpc_port": (None, "test"),
            "decode.min_replicas": (2, "test"),
            "ray.health_check_period_s": (0.5, "test"),
        },
    )
    flag = folder / "flag"
    said: list[str] = []
    factories = Factories(worker=functools.partial(FlaggedWorker, flag), gateway=PlaceholderGateway)
    state_dir = make_state_dir()
    launcher = Launcher(config, state_dir, said.append, factories)
    before = set(psutil.Process().children(recursive=True))
    try:
        launcher.start_ray()
        launcher.deploy()
        launcher.wait_ready()
        yield Running(launcher, config, state_dir, flag, said)
    finally:
        launcher.stop()
        remove_state_dir(state_dir)
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(left, 20)
    assert not alive, "processes of Ray are left"
    assert not state_dir.exists()


def test_everybody_is_listed(running: Running) -> None:
    listing = running.launcher.listing()
    assert sorted(m.role.value for m in listing.workers) == ["decode", "decode", "prefill"]
    assert all(m.address.startswith("127.0.0.1:") for m in listing.workers)
    assert len({m.incarnation for m in listing.workers}) == 3
    assert len(listing.gateways) == 1
    assert any("1 gateway up" in line for line in running.said)


def test_a_directory_that_dies_is_filled_again(running: Running) -> None:
    import ray

    from baton.cluster.directory_actor import open_directory

    before = {m.incarnation for m in running.launcher.listing().workers}
    epoch = running.launcher.listing().epoch
    os.kill(_pid("ray::DirectoryActor"), signal.SIGKILL)
    running.wait(lambda workers: {m.incarnation for m in workers} == before)
    assert running.launcher.listing().epoch != epoch

    ray.kill(open_directory(running.config.name, running.config.directory))
    end_s = time.monotonic() + HEAL_S
    while time.monotonic() < end_s:
        handle = open_directory(running.config.name, running.config.directory)
        listing = ray.get(handle.listing.remote(), timeout=20)
        if {m.incarnation for m in listing.workers} == before:
            break
        time.sleep(0.2)
    else:
        raise AssertionError("members did not come back to a new directory")
    running.launcher.reopen_directory()


def test_a_killed_worker_is_replaced(running: Running) -> None:
    before = {m.incarnation for m in running.launcher.listing().workers}
    os.kill(_pid("ray::ServeReplica:baton:prefill"), signal.SIGKILL)
    after = running.wait(
        lambda workers: len(workers) == 3 and len({m.incarnation for m in workers} - before) == 1
    )
    (fresh,) = (m for m in after if m.incarnation not in before)
    assert fresh.role.value == "prefill"


def test_a_worker_whose_engine_failed_is_replaced(running: Running) -> None:
    workers = running.wait(lambda workers: len(workers) == 3)
    victim = next(m for m in workers if m.role.value == "decode")
    running.flag.write_text(victim.worker_id)
    running.wait(
        lambda now: len(now) == 3 and victim.incarnation not in {m.incarnation for m in now}
    )


def test_a_refused_model_is_told_in_a_sentence(running: Running) -> None:
    from ray import serve

    from baton.cluster.actors import Factories
    from baton.cluster.launcher import Launcher

    # Its workers take no CPUs: the other application leaves hardly any.
    config = replace(
        running.config,
        name="other",
        prefill=replace(running.config.prefill, num_cpus=0),
        decode=replace(running.config.decode, num_cpus=0),
    )
    factories = Factories(worker=UnloadableWorker, gateway=PlaceholderGateway)
    launcher = Launcher(config, running.state_dir, running.said.append, factories)
    launcher.deploy()
    with pytest.raises(
        ModelLoadError, match=r"^(prefill|decode)-\w+: tensor lm_head.weight is mis"
    ):
        launcher.wait_ready()
    serve.delete("other")


def test_serves_own_tools_can_build_the_application(running: Running) -> None:
    from ray import serve

    from baton.cluster.app import build, kept_secret

    application = build({"model": running.config.model, "decode": {"min_replicas": 3}})
    assert isinstance(application, serve.Application)
    # Deployed again, it goes on with the workers that are not replaced yet.
    secret = kept_secret("baton")
    assert len(secret) == 64
    assert kept_secret("baton") == secret != kept_secret("other")
    with pytest.raises(ConfigError, match="did you mean decode"):
        build({"decod": {}})


def test_scaled_pools_report_their_load(running: Running) -> None:
    """A pool with max_replicas has Serve's autoscaler ask our policy, fed by the workers'
    figures.
    """
    from ray import serve

    from baton.cluster.actors import Factories
    from baton.cluster.launcher import Launcher

    # No CPUs of their own: the private Ray has only what the first application needs.
    prefill = replace(running.config.prefill, num_cpus=0.0)
    decode = replace(running.config.decode, num_cpus=0.0, min_replicas=1, max_replicas=2)
    config = replace(running.config, name="scaled", prefill=prefill, decode=decode)
    factories = Factories(worker=PlaceholderWorker, gateway=PlaceholderGateway)
    launcher = Launcher(config, running.state_dir, running.said.append, factories)
    launcher.deploy()
    launcher.wait_ready()
    status = serve.status().applications["scaled"]
    assert status.deployments["decode"].replica_states == {"RUNNING": 1}
    serve.delete("scaled")


def _pid(title: str) -> int:
    for process in psutil.Process().children(recursive=True):
        if title in " ".join(process.cmdline()):
            return int(process.pid)
    raise AssertionError(f"there is no process {title}")
