"""Where ranks other than 0 live."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Final, Protocol

import torch

from baton.engine.parallel.links import RankSpec

# After rank 0 has said goodbye, a rank ends by itself within this time, or is killed.
GOODBYE_S: Final = 5.0


class RankHandle(Protocol):
    """A rank that was started.

    ended: why it is no longer there, or None while it is.
    stop: returns when it is gone; one that rank 0 has said goodbye to is given time to leave.
    """

    def ended(self) -> str | None: ...
    def stop(self) -> None: ...


class RankHost(Protocol):
    """Starts ranks. `address`: of rank 0's machine, as the ranks reach it.

    device: the device of a rank, where the configuration says `device` ("auto", "cpu", "cuda").
    """

    @property
    def address(self) -> str: ...
    def device(self, rank: int, device: str) -> str: ...
    def start(self, spec: RankSpec) -> RankHandle: ...


class ProcessRanks:
    """Ranks as child processes on this machine, rank r on its GPU r."""

    address: str = "127.0.0.1"

    def device(self, rank: int, device: str) -> str:
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        return f"cuda:{rank}" if cuda else device

    def start(self, spec: RankSpec) -> RankHandle:
        device = self.device(spec.rank, spec.config.device)
        return _ProcessRank(replace(spec, config=replace(spec.config, device=device)))


class _ProcessRank:
    """`python -m baton.engine.parallel.process`, which reads its spec from a pipe.

    The pipe stays open as long as this process lives: its end is the rank's end too.
    """

    def __init__(self, spec: RankSpec) -> None:
        self._rank = spec.rank
        command = [sys.executable, "-m", "baton.engine.parallel.process"]
        # It must find the same modules, however this process came to them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        self._pipe = self._process.stdin
        assert self._pipe is not None
        pickle.dump(spec, self._pipe)
        self._pipe.flush()

    def ended(self) -> str | None:
        code = self._process.poll()
        return None if code is None else f"its process ended with {code}"

    def stop(self) -> None:
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
