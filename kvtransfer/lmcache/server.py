"""An LMCache server that Baton starts, watches and stops: for one machine, and for tests."""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Final

from baton.kvtransfer.lmcache.config import LMCacheConfig, check_installed
from baton.kvtransfer.lmcache.process import READY
from baton.protos.errors import ConfigError, UnavailableError

_START_S: Final = 60.0
_STOP_S: Final = 10.0
_WATCH_S: Final = 0.2
# A server that dies again and again is started again ever later, up to this.
_MOST_PAUSE_S: Final = 30.0
_GIB: Final = 1 << 30

logger = logging.getLogger(__name__)


class LMCacheServer:
    """One server process on this machine's loopback. `start` it, and `close` it at the end.

    When it dies it is started again at the same address, empty but for its storage. It ends with
    this process, however that ends.
    """

    def __init__(self, config: LMCacheConfig) -> None:
        check_installed("lmcache")
        self._config = config
        self._held: socket.socket | None = None
        self._port = 0
        self._shm_name = f"baton-{uuid.uuid4().hex[:12]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="lmcache-watch", daemon=True)
        self.num_restarts = 0

    @property
    def address(self) -> str:
        """Once it was started."""
        return f"tcp://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Returns when it takes requests. ConfigError, UnavailableError."""
        free = _free_shm_bytes()
        wanted = int(self._config.memory_gib * _GIB)
        if free < wanted:
            raise ConfigError(
                f"lmcache.memory_gib is {self._config.memory_gib:g}, but /dev/shm has"
                f" {free / _GIB:.3g} GiB free",
                param="lmcache.memory_gib",
            )
        # Bound and never listening: nobody else is given this port, before the server's process has
        # it or between two of them.
        self._held = _held_port()
        self._port = self._held.getsockname()[1]
        try:
            self._process = self._spawn()
        except UnavailableError:
            self._held.close()
            raise
        self._watcher.start()

    def close(self) -> None:
        """Ends the process, and with it everything in its memory."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._process is not None:
            self._end(self._process)
        if self._held is not None:
            self._held.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # It must find the same modules, however this process came to them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        arguments = server_arguments(self._config, self._port, self._shm_name)
        process = subprocess.Popen(
            [sys.executable, "-m", "baton.kvtransfer.lmcache.process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Ctrl-C in a terminal reaches every process of the session; this one ends by its pipe.
            start_new_session=True,
        )
        if self._wait_ready(process):
            return process
        code = process.poll()
        self._end(process)
        raise UnavailableError(
            f"the LMCache server does not start: its process"
            f" {'says nothing' if code is None else f'ended with {code}'}; see its errors above"
        )

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.stdout is not None
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and not self._closing.is_set():
            if not select.select([process.stdout], [], [], _WATCH_S)[0]:
                continue
            line = process.stdout.readline()
            if not line or line.strip() == READY.encode():
                return bool(line)
        return False

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        # Of one that was killed.
        Path(f"/dev/shm/lmcache_l1_pool_{self._shm_name}").unlink(missing_ok=True)

    def _watch(self) -> None:
        pause_s = 0.0
        began_s = time.monotonic()
        while not self._closing.wait(_WATCH_S):
            if self._process is None or self._process.poll() is None:
                continue
            code = self._process.returncode
            pause_s = 0.0 if time.monotonic() - began_s > _MOST_PAUSE_S else pause_s
            logger.warning("the LMCache server ended with %s: starting another", code)
            self._end(self._process)
            if self._closing.wait(pause_s):
                return
            pause_s = min(_MOST_PAUSE_S, 2 * pause_s + 0.5)
            began_s = time.monotonic()
            try:
                self._process = self._spawn()
                self.num_restarts += 1
            except UnavailableError as error:
                logger.warning("%s", error)


def server_arguments(config: LMCacheConfig, port: int, name: str) -> list[str]:
    """Options of a server on this machine's loopback; the chart gives its own the same. `name`: of
    its shared memory, and of itself.
    """
    options = {
        "instance-id": name,
        "host": "127.0.0.1",
        "port": port,
        "l1-size-gb": config.memory_gib,
        "shm-name": name,
        "supported-transfer-mode": "engine_driven",
        "null-block-id": -1,
        "eviction-policy": "LRU",
        # Eviction begins late and runs beside; a store needs room at once.
        "eviction-trigger-watermark": 0.6,
        "l1-write-ttl-seconds": 60,
        "l1-read-ttl-seconds": 60,
        "l2-prefetch-policy": "retain",
        "max-workers": 4,
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    for text in config.storage:
        arguments += ["--l2-adapter", text]
    return [*arguments, "--no-l1-use-lazy"]


def _held_port() -> socket.socket:
    held = socket.socket()
    # LMCache's own socket has it, too; only so may it take the port.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _free_shm_bytes() -> int:
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize
