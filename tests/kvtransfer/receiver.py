"""A receiver in a process of its own, driven through a pipe by a test."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from tests.kvtransfer.sides import PATIENCE_S

from baton.kvtransfer.connector import Connector, Notice, PeerInfo, PeerKey
from baton.kvtransfer.nixl import NixlConnector


def serve(
    pipe: Connection,
    connector: type[Connector],
    name: str,
    incarnation: str,
    options: dict[str, Any],
    expect: int,
) -> None:
    """The child's main function: answers which notices came and what its blocks hold."""
    import torch
    from tests.kvtransfer.sides import Side

    torch.set_num_threads(1)
    side = Side(connector, name, incarnation=incarnation, **options)
    side.connector.expect(expect)
    pipe.send(side.info)
    while True:
        command = pipe.recv()
        if command == "notices":
            pipe.send(list(side.notices))
        else:
            pipe.send(side.pool[command].cpu().numpy().tobytes())


class Receiver:
    """The test's side of the pipe. `info` waits for the process to be ready."""

    def __init__(
        self,
        name: str,
        *,
        incarnation: str = "1",
        num_blocks: int = 32,
        expect: int = 1,
        device: str = "cpu",
        connector: type[Connector] = NixlConnector,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve,
            args=(
                theirs,
                connector,
                name,
                incarnation,
                {"num_blocks": num_blocks, "device": device},
                expect,
            ),
        )
        self.process.start()
        theirs.close()

    @functools.cached_property
    def info(self) -> PeerInfo:
        info: PeerInfo = self._receive()
        return info

    @property
    def key(self) -> PeerKey:
        return self.info.key

    def notices(self) -> list[tuple[PeerKey, Notice]]:
        notices: list[tuple[PeerKey, Notice]] = self._ask("notices")
        return notices

    def block_bytes(self, blocks: list[int]) -> bytes:
        data: bytes = self._ask(blocks)
        return data

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The process stands still meanwhile."""
        assert self.info
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE_S)

    def end(self) -> None:
        """Whatever happened, the process is gone afterwards."""
        self.kill()
        self.process.close()
        self._pipe.close()

    def _ask(self, command: Any) -> Any:
        assert self.info
        self._pipe.send(command)
        return self._receive()

    def _receive(self) -> Any:
        assert self._pipe.poll(90.0), "the receiver does not answer"
        return self._pipe.recv()
