"""Both pools of a real cluster grow under load, shrink when idle, go to zero and come back; nothing
is lost meanwhile.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.integration.conftest import Cluster, served
from tests.integration.test_cluster import body, run_alone

from baton.protos.types import SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
# Generous: replicas start while requests keep a small machine busy.
SCALE_S = 300.0
NUM_TOKENS = 48
NUM_CLIENTS = 10

CONFIG = """
prefill:
  min_replicas: {low}
  max_replicas: 2
  engine: {{num_blocks: 512, max_step_tokens: 128}}
  scaling: {{policy: queue, queue_tokens_per_replica: 150, hysteresis: 0, {pace}}}
decode:
  min_replicas: {low}
  max_replicas: 2
  engine: {{num_blocks: 512, max_step_tokens: 128, max_running: 4}}
  scaling: {{policy: utilization, target_utilization: 0.5, hysteresis: 0, {pace}}}
router: {{policy: always_remote}}
fleet: {{wake_wait_s: 300}}
"""


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    text = CONFIG.format(low=1, pace="up_cooldown_s: 1, down_cooldown_s: 8")
    with served(tmp_path_factory.mktemp("scaled"), text, []) as running:
        running.wait_for(1, 1)
        yield running


class Load:
    """Clients that ask one after the other until told to stop, and check every answer."""

    def __init__(self, url: str, num_clients: int, num_prompt_tokens: int) -> None:
        rng = random.Random(num_prompt_tokens)
        self.prompts = [
            [rng.randrange(20, 1000) for _ in range(num_prompt_tokens)] for _ in range(4)
        ]
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
        self._expected = run_alone(self.prompts, params)
        self._url = url
        self._stop = threading.Event()
        self.wrong: list[str] = []
        self.num_right = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, client_number: int) -> None:
        number = client_number
        with httpx.Client(base_url=self._url, timeout=300.0) as client:
            while not self._stop.is_set():
                number = (number + 1) % len(self.prompts)
                # A salt of its own each time: nothing is cached, so there is work to do.
                salt = uuid.uuid4().hex
                request = body(self.prompts[number], NUM_TOKENS, cache_salt=salt)
                try:
                    answer = client.post("/v1/completions", json=request)
                    right = answer.status_code == 200 and (
                        answer.json()["choices"][0]["token_ids"] == self._expected[number]
                    )
                    problem = answer.text
                except httpx.HTTPError as error:
                    right, problem = False, repr(error)
                with self._lock:
                    self.num_right += right
                    if not right:
                        self.wrong.append(problem[:300])

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(300)


def wait_for_sizes(cluster: Cluster, prefill: int, decode: int) -> None:
    end_s = time.monotonic() + SCALE_S
    while time.monotonic() < end_s:
        up = [w for w in cluster.workers() if w["state"] == "up"]
        sizes = [sum(w["role"] == role for w in up) for role in ("prefill", "decode")]
        if sizes == [prefill, decode]:
            return
        time.sleep(0.3)
    raise AssertionError(f"not {prefill} + {decode}:\n{scaling(cluster)}\n{cluster.workers()}")


def scaling(cluster: Cluster) -> str:
    return baton("scaling", "--url", cluster.url)


def baton(*arguments: str) -> str:
    command = [sys.executable, "-m", "baton.cluster.cli", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def wait_until_both_grew(cluster: Cluster) -> None:
    """Both pools have had two workers, though perhaps not at the same time."""
    end_s = time.monotonic() + SCALE_S
    grown: set[str] = set()
    while time.monotonic() < end_s:
        up = [w["role"] for w in cluster.workers() if w["state"] == "up"]
        grown |= {role for role in ("prefill", "decode") if up.count(role) >= 2}
        if len(grown) == 2:
            return
        time.sleep(0.3)
    raise AssertionError(f"only {grown or 'nothing'} grew:\n{scaling(cluster)}")


def test_pools_follow_the_load_and_no_request_is_lost(scaled: Cluster) -> None:
    cluster = scaled
    load = Load(cluster.url, NUM_CLIENTS, 300)
    try:
        wait_until_both_grew(cluster)
    finally:
        load.stop()
    assert load.wrong == []
    # One client goes on while the pools shrink: what runs on a worker that leaves goes on.
    trickle = Load(cluster.url, 1, 16)
    try:
        wait_for_sizes(cluster, 1, 1)
    finally:
        trickle.stop()
    assert trickle.wrong == []
    assert load.num_right > NUM_CLIENTS
    assert trickle.num_right
    shown = scaling(cluster)
    assert "prefill goes from 1 to 2: queue:" in shown
    assert "decode goes from 2 to 1: utilization:" in shown
    cluster.wait_all_free()


def test_settings_change_live_and_a_request_wakes_a_cluster_of_none(
    scaled: Cluster, tmp_path: Path
) -> None:
    cluster, config = scaled, tmp_path / "baton.yaml"
    config.write_text(CONFIG.format(low=0, pace="up_cooldown_s: 1, down_cooldown_s: 3"))
    said = baton("config", "apply", str(config), "--url", cluster.url)
    assert "decode.min_replicas: 1 -> 0" in said
    wait_for_sizes(cluster, 0, 0)
    assert httpx.get(f"{cluster.url}/ready", timeout=20).status_code == 200
    load = Load(cluster.url, 2, 16)
    try:
        # Both wait in the gateway until there is somebody to serve them.
        end_s = time.monotonic() + SCALE_S
        while not load.num_right and not load.wrong and time.monotonic() < end_s:
            time.sleep(0.3)
    finally:
        load.stop()
    assert load.wrong == []
    assert load.num_right >= 2
    assert "decode goes from 0 to 1" in scaling(cluster)
