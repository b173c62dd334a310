"""A real cluster: `baton serve` as an operator starts it, reached over HTTP, killed by pid."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.engine.adapters.peft_folder import random_tensors, save_adapter

from baton.engine.model_info import read_model_spec

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "baton-tiny"
SHIPPED = ROOT / "models" / "adapters"
START_TIMEOUT_S = 240.0
HEAL_TIMEOUT_S = 120.0


def free_port() -> int:
    """Below those that the system gives out by itself: nobody gets it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class Cluster:
    """What an operator has: a URL, and the machine's processes."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    grpc_target: str = ""
    # Where adapters may be loaded from.
    adapters: Path = Path()

    def workers(self, role: str | None = None) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/baton/workers", timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["workers"]
        return [w for w in found if role in (None, w["role"])]

    def wait_for(self, prefill: int, decode: int, *, gone: frozenset[str] = frozenset()) -> None:
        """Until so many workers are up, none of them of an incarnation in `gone`."""
        end_s = time.monotonic() + HEAL_TIMEOUT_S
        while time.monotonic() < end_s:
            up = [
                w
                for w in self.workers()
                if w["state"] == "up" and w["incarnation"] not in gone and w["age_s"] is not None
            ]
            counts = [sum(w["role"] == role for w in up) for role in ("prefill", "decode")]
            if counts == [prefill, decode]:
                return
            time.sleep(0.25)
        raise AssertionError(f"not {prefill} + {decode} workers in time: {self.workers()}")

    def wait_all_free(self) -> None:
        """Until no worker runs anything and every KV block is free again."""
        end_s = time.monotonic() + HEAL_TIMEOUT_S
        while time.monotonic() < end_s:
            loads = [w["load"] for w in self.workers()]
            if all(
                load["free_blocks"] == load["total_blocks"]
                and load["num_running"] == load["num_waiting"] == 0
                for load in loads
            ):
                return
            time.sleep(0.25)
        raise AssertionError(f"blocks or requests are left: {self.workers()}")

    def kill(self, worker: dict[str, Any]) -> None:
        """SIGKILL to the process that serves this worker's port."""
        os.kill(self.pid_of(worker), signal.SIGKILL)

    def pid_of(self, worker: dict[str, Any]) -> int:
        port = int(worker["address"].rpartition(":")[2])
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                assert connection.pid is not None
                return int(connection.pid)
        raise AssertionError(f"nobody listens at {worker['address']}")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120.0)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    first = random_adapter(folder / "adapters" / "first", seed=1)
    options = ["--prefill-replicas", "1", "--decode-replicas", "2"]
    options += ["--lora-modules", f"first={first}", "--lora-roots", str(first.parent)]
    options += ["--lora-roots", str(SHIPPED), "--max-loras", "2"]
    with served(folder, CONFIG, options) as running:
        running.adapters = first.parent
        running.wait_for(1, 2)
        yield running


def random_adapter(
    folder: Path, seed: int, rank: int = 4, targets: Sequence[str] = ("q_proj", "up_proj")
) -> Path:
    """One that changes the model's answers."""
    spec = read_model_spec(str(MODEL))
    tensors = random_tensors(spec, targets, rank, seed=seed)
    return save_adapter(folder, tensors, rank=rank, targets=targets)


@contextlib.contextmanager
def served(folder: Path, text: str, options: Sequence[str]) -> Iterator[Cluster]:
    """`baton serve` with a configuration and options of its own, until the block ends."""
    port, grpc_port = free_port(), free_port()
    config = folder / "baton.yaml"
    config.write_text(text)
    log = folder / "serve.log"
    command = [sys.executable, "-m", "baton.cluster.cli", "serve", str(MODEL)]
    command += ["--config", str(config), "--port", str(port), "--grpc-port", str(grpc_port)]
    command += options
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    running = Cluster(f"http://127.0.0.1:{port}", process, log, f"127.0.0.1:{grpc_port}")
    try:
        wait_ready(running)
        yield running
    finally:
        children = (
            psutil.Process(process.pid).children(recursive=True)
            if psutil.pid_exists(process.pid)
            else []
        )
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
    left = [child for child in children if child.is_running() and child.status() != "zombie"]
    assert not left, f"baton serve left processes behind: {left}"


def wait_ready(cluster: Cluster) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s:
        if cluster.process.poll() is not None:
            raise AssertionError(f"baton serve ended:\n{cluster.log.read_text()[-4000:]}")
        try:
            urllib.request.urlopen(f"{cluster.url}/ready", timeout=5).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise AssertionError(f"not ready in {START_TIMEOUT_S} s:\n{cluster.log.read_text()[-4000:]}")


# Small pools, so that leaks show.
CONFIG = """
prefill:
  engine: {num_blocks: 1024, max_step_tokens: 128}
decode:
  engine: {num_blocks: 1024, max_step_tokens: 128}
"""
