"""A two-rank communicator of torch.distributed: NCCL between GPUs, gloo between CPUs.

Rank 0 sends, rank 1 receives. Each end belongs to one thread. Two ranks only: a communicator that
spans a fleet would have to be made anew whenever a worker comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from baton.kvtransfer.channel import Offer
from baton.kvtransfer.frames import Greeting
from baton.protos.errors import TransferError

# Sent at once; the next such chunk is gathered, or the last one scattered, meanwhile.
CHUNK_BYTES: Final = 8 << 20
# How long the making of a link, and each part of a transfer over it, may block.
CONNECT_TIMEOUT_S: Final = 10.0
TRANSFER_TIMEOUT_S: Final = 20.0
SENDER, RECEIVER = 0, 1


def backend_of(device: torch.device) -> str:
    """The backend that moves memory of `device`."""
    return "nccl" if device.type == "cuda" else "gloo"


def make_store(host: str, port: int, *, is_master: bool, timeout_s: float) -> TCPStore:
    """Where the two ranks find each other, a TCPStore. Port 0 takes any. RuntimeError."""
    return TCPStore(
        host,
        port,
        world_size=2,
        is_master=is_master,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )


class Communicators:
    """See `Channels`. `host` is this machine's address as peers reach it."""

    advice = "either both pools are on GPUs or none is"

    def __init__(self, host: str, device: torch.device) -> None:
        self.name = backend_of(device)
        self._host = host
        self._device = device

    def offer(self) -> Offer:
        store = make_store(self._host, 0, is_master=True, timeout_s=CONNECT_TIMEOUT_S)
        return Offer(str(store.port), lambda: self._open(store, SENDER, self._host))

    def accept(self, greeting: Greeting) -> Communicator:
        try:
            port = int(greeting.rendezvous)
        except ValueError as error:
            raise TransferError(f"{greeting.rendezvous!r} is no port of a store") from error
        store = make_store(greeting.host, port, is_master=False, timeout_s=CONNECT_TIMEOUT_S)
        return self._open(store, RECEIVER, greeting.host)

    def _open(self, store: TCPStore, rank: int, host: str) -> Communicator:
        timeout_s = TRANSFER_TIMEOUT_S
        return Communicator(store, rank, host=host, device=self._device, timeout_s=timeout_s)


class Communicator:
    """One end. Blocks until the other end is there, for at most `timeout_s` (RuntimeError)."""

    def __init__(
        self, store: TCPStore, rank: int, *, host: str, device: torch.device, timeout_s: float
    ) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._group = _make_group(store, rank, host, device, timedelta(seconds=timeout_s))
        # gloo connects when the first rank asks for it: the store must stay until the end.
        self._store = store

    def send(self, chunks: Iterator[torch.Tensor]) -> None:
        """Sends each chunk, contiguous. RuntimeError when the other end is gone."""
        with self._on_stream():
            under_way: Any = None
            kept: torch.Tensor | None = None
            for chunk in chunks:
                work = self._group.send([chunk], RECEIVER, 0)
                if under_way is not None:
                    under_way.wait()
                # The memory of a chunk must live as long as its send.
                under_way, kept = work, chunk
            if under_way is not None:
                under_way.wait()
            del kept
            self._synchronize()

    def receive(self, chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Fills each chunk and yields it, while the next one is already on its way."""
        with self._on_stream():
            waiting: tuple[Any, torch.Tensor] | None = None
            for chunk in chunks:
                work = self._group.recv([chunk], SENDER, 0)
                if waiting is not None:
                    waiting[0].wait()
                    yield waiting[1]
                waiting = (work, chunk)
            if waiting is not None:
                waiting[0].wait()
                yield waiting[1]
            self._synchronize()

    def _on_stream(self) -> Any:
        return torch.cuda.stream(self._stream)

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _make_group(
    store: TCPStore, rank: int, host: str, device: torch.device, timeout: timedelta
) -> Any:
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, 2, options)
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stub lacks it
    gloo._timeout = timeout
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, rank, 2, gloo)
