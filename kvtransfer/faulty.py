"""Wires and tiers that misbehave on purpose: `FaultyWire` and `FaultyTier` around any other one.

For tests and for `benchmarks/kv_faults.py`. What it does is drawn from a seeded generator, so a
schedule of faults can be repeated.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch

from baton.kvtransfer.connector import PeerInfo, PeerKey
from baton.kvtransfer.tiers.tier import Tier, TierStatistics
from baton.kvtransfer.wire import Route, RunIds, Transfer, Wire
from baton.protos.errors import PeerLostError, TransferError
from baton.protos.types import KvEvents


@dataclass(slots=True, kw_only=True)
class Faults:
    """Chances from 0 to 1, per write, notice, connection or call; may be changed at any time.

    lose_notice, repeat_notice, delay_notice: of what came; a delayed one is handed on after those
    that came later. lose_before, lose_during, lose_after: the wire breaks with none, some or all
    of a write's data written. fail_write: the write is refused, the wire stands. stall: a write
    that never ends (a half-open peer) until the peer is dropped. slow: a write is reported late.
    refuse_open, stall_open: of connections. fail_tier, slow_tier, partial_tier: of a tier's calls;
    a partial one does only the first half of what it was asked for.
    """

    rng: random.Random
    lose_notice: float = 0.0
    repeat_notice: float = 0.0
    delay_notice: float = 0.0
    lose_before: float = 0.0
    lose_during: float = 0.0
    lose_after: float = 0.0
    fail_write: float = 0.0
    stall: float = 0.0
    slow: float = 0.0
    refuse_open: float = 0.0
    stall_open: float = 0.0
    fail_tier: float = 0.0
    slow_tier: float = 0.0
    partial_tier: float = 0.0
    delay_s: float = 0.02
    happened: dict[str, int] = field(default_factory=dict)

    def draw(self, name: str) -> bool:
        """Whether that fault happens now; counted in `happened`."""
        chance: float = getattr(self, name)
        if chance <= 0.0 or self.rng.random() >= chance:
            return False
        self.happened[name] = self.happened.get(name, 0) + 1
        return True

    def choose(self, num_kinds: int, chance: float) -> None:
        """Sets `num_kinds` faults, drawn at random, to `chance`, and the others to 0."""
        names = [f.name for f in fields(self) if f.name not in ("rng", "delay_s", "happened")]
        chosen = self.rng.sample(names, num_kinds)
        for name in names:
            setattr(self, name, chance if name in chosen else 0.0)

    def stop(self) -> None:
        """From now on nothing goes wrong."""
        self.choose(0, 0.0)


class FaultyWire:
    """See `Wire`. Takes over `wire`."""

    def __init__(self, wire: Wire, faults: Faults) -> None:
        self._wire = wire
        self._faults = faults
        self._late: list[tuple[float, tuple[str, bytes]]] = []

    @property
    def info(self) -> PeerInfo:
        return self._wire.info

    @property
    def pool(self) -> torch.Tensor:
        return self._wire.pool

    def enter_thread(self) -> None:
        self._wire.enter_thread()

    def open(self, peer: PeerInfo, route: Route) -> Transfer:
        if self._faults.draw("refuse_open"):
            raise PeerLostError(f"connecting to {peer.key}: an injected fault")
        stalls = self._faults.draw("stall_open")
        return _FaultyTransfer(self._wire.open(peer, route), stalls=stalls)

    def write(
        self, key: PeerKey, local_runs: RunIds, remote_runs: RunIds, notice: bytes
    ) -> Transfer:
        faults = self._faults
        if faults.draw("fail_write"):
            raise TransferError(f"writing to {key}: an injected fault")
        lost = PeerLostError(f"writing to {key}: an injected loss of the wire")
        if faults.draw("lose_before"):
            raise lost
        if faults.draw("lose_during"):
            half = len(local_runs) // 2
            if half:
                # Without a notice that says so; it has the form of no notice.
                part = self._wire.write(key, local_runs[:half], remote_runs[:half], b"half")
                return _FaultyTransfer(part, error=lost)
            raise lost
        error = lost if faults.draw("lose_after") else None
        not_before_s = time.monotonic() + faults.delay_s if faults.draw("slow") else 0.0
        stalls = faults.draw("stall")
        transfer = self._wire.write(key, local_runs, remote_runs, notice)
        return _FaultyTransfer(transfer, error=error, stalls=stalls, not_before_s=not_before_s)

    def drop(self, key: PeerKey) -> None:
        self._wire.drop(key)

    def received(self) -> list[tuple[str, bytes]]:
        now_s, faults = time.monotonic(), self._faults
        due = [item for due_s, item in self._late if due_s <= now_s]
        self._late = [entry for entry in self._late if entry[0] > now_s]
        for item in self._wire.received():
            if item[1] == b"half" or faults.draw("lose_notice"):
                continue
            if faults.draw("delay_notice"):
                self._late.append((now_s + faults.delay_s, item))
                continue
            due += [item, item] if faults.draw("repeat_notice") else [item]
        return due

    def close(self) -> None:
        self._wire.close()


class _FaultyTransfer:
    """See `Transfer`."""

    def __init__(
        self,
        transfer: Transfer,
        *,
        error: TransferError | None = None,
        stalls: bool = False,
        not_before_s: float = 0.0,
    ) -> None:
        self._transfer = transfer
        self._error = error
        self._stalls = stalls
        self._not_before_s = not_before_s

    def poll(self) -> bool:
        if not self._transfer.poll() or self._stalls or time.monotonic() < self._not_before_s:
            return False
        if self._error is not None:
            raise self._error
        return True

    def release(self) -> None:
        self._transfer.release()


class FaultyTier:
    """See `Tier`. Takes over `tier`."""

    def __init__(self, tier: Tier, faults: Faults) -> None:
        self.name = tier.name
        self._tier = tier
        self._faults = faults

    def lookup(self, hashes: Sequence[bytes]) -> int:
        return self._tier.lookup(hashes[: self._asked("looking in", len(hashes))])

    def load(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        count = self._asked("loading from", len(hashes))
        return self._tier.load(hashes[:count], slots[:count])

    def store(self, hashes: Sequence[bytes], slots: Sequence[int]) -> int:
        count = self._asked("storing in", len(hashes))
        return self._tier.store(hashes[:count], slots[:count])

    def drain_changes(self) -> KvEvents:
        return self._tier.drain_changes()

    def statistics(self) -> TierStatistics:
        return self._tier.statistics()

    def close(self) -> None:
        self._tier.close()

    def _asked(self, what: str, count: int) -> int:
        """How many of `count` blocks the call is for; TransferError."""
        if self._faults.draw("fail_tier"):
            raise TransferError(f"{what} {self.name}: an injected fault")
        if self._faults.draw("slow_tier"):
            time.sleep(self._faults.delay_s)
        return count // 2 if self._faults.draw("partial_tier") else count
