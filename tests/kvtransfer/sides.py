"""One side of a transfer in a test: a pool with recognizable contents, its connector, what came."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch

from baton.kvtransfer.connector import Connector, Notice, PeerInfo, PeerKey
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.wire import ConnectorLimits
from baton.protos.errors import TransferError

LAYOUT = KVLayout(num_layers=3, kv_heads=2, block_size=4, head_dim=8, dtype="float32")
NUM_BLOCKS = 32
# Only ever spent by a test that fails.
PATIENCE_S = 60.0

Make = Callable[..., Connector]


class Side:
    """Block i of a fresh pool is filled with noise from `seed`; notices are kept in order."""

    def __init__(
        self,
        make: Make,
        name: str,
        *,
        incarnation: str = "1",
        layout: KVLayout = LAYOUT,
        num_blocks: int = NUM_BLOCKS,
        limits: ConnectorLimits | None = None,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        noise = torch.randn(num_blocks, *layout.block_shape, generator=generator)
        self.pool = noise.to(device, getattr(torch, layout.dtype))
        self.notices: list[tuple[PeerKey, Notice]] = []
        self.seen: list[torch.Tensor] = []
        self.key = PeerKey(name, incarnation)
        self.watch: Sequence[int] = ()
        self.connector = make(self.pool, layout, self.key, on_notice=self._on_notice, limits=limits)

    def _on_notice(self, key: PeerKey, notice: Notice) -> None:
        self.seen.append(self.pool[list(self.watch)].clone())
        self.notices.append((key, notice))

    @property
    def info(self) -> PeerInfo:
        return self.connector.local_info()

    def push(self, to: PeerKey, local: Sequence[int], remote: Sequence[int], tag: str) -> Outcome:
        outcome = Outcome()
        notice = Notice(tag, 7, 0, len(local))
        self.connector.push(to, local, remote, notice, outcome)
        return outcome


class Outcome:
    """A `done` callback that can be waited for, and that counts how often it came."""

    def __init__(self) -> None:
        self.calls: list[TransferError | None] = []
        self.thread_name = ""
        self._came = threading.Event()

    def __call__(self, error: TransferError | None) -> None:
        self.calls.append(error)
        self.thread_name = threading.current_thread().name
        self._came.set()

    @property
    def done(self) -> bool:
        return self._came.is_set()

    def wait(self) -> TransferError | None:
        assert self._came.wait(PATIENCE_S), "`done` did not come"
        assert len(self.calls) == 1
        return self.calls[0]


def eventually(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.001)
