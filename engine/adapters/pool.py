"""The adapters' memory: slots on the device, and how an adapter lies in one.

A slot is flat. Every part of an adapter takes space in proportion to its rank, so each has a fixed
offset in units of the rank: an adapter of rank r fills the first r-th of what the largest may fill,
without gaps, and goes to the device in one copy.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from baton.engine.adapters.folder import (
    AdapterFolder,
    AdapterModule,
    check_adapter,
    read_adapter,
)
from baton.engine.adapters.memory import Copied, HostCopy
from baton.engine.adapters.projections import EMBEDDING
from baton.engine.model_info import ModelSpec
from baton.engine.models.weights import LoraTarget, Weights
from baton.kernels.lora import LoraWeights
from baton.protos.adapters import AdapterRef
from baton.protos.errors import AdapterError, BatonError, ConfigError, OverloadedError

# Ranks are rounded up to it, and offsets too: the kernels load 16 bytes at a time.
RANK_UNIT: Final = 8
OFFSET_UNIT: Final = 16


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """This rank's part of an adapter in CPU memory (pinned for a GPU), as it will lie in a slot.

    flat: [elements]. table: int32 [slices of all targets + 1], their ranks, and the room.
    """

    flat: Tensor
    table: Tensor

    @property
    def num_bytes(self) -> int:
        return self.flat.nbytes


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a target's A and B lie, in units of the rank, and its first row of the table."""

    target: LoraTarget
    a_offset: int
    b_offset: int
    first_row: int

    @property
    def width(self) -> int:
        return _length(self.target.columns)

    @property
    def heights(self) -> tuple[int, ...]:
        return tuple(_length(rows) for rows in self.target.rows)

    @property
    def end(self) -> int:
        return self.b_offset + sum(self.heights)


class AdapterPool:
    """`num_slots` slots for adapters of up to `max_rank`, of the targets that the model noted.

    See AdapterMemory for read, forget and copy.
    """

    def __init__(self, weights: Weights, spec: ModelSpec, num_slots: int, max_rank: int) -> None:
        """Allocates, and binds the targets to their places. Raises ConfigError without memory."""
        self.num_slots = num_slots
        self._max_rank = max_rank
        self._spec = spec
        self._platform = weights.platform
        self._places = _places(weights)
        room = _rounded(max_rank, RANK_UNIT)
        elements = _rounded(self._places[-1].end, OFFSET_UNIT) * room
        num_rows = self._places[-1].first_row + len(self._places[-1].heights)
        device = weights.platform.device
        try:
            self.flat = torch.zeros(
                (num_slots, elements), dtype=self._platform.dtype, device=device
            )
        except RuntimeError as error:
            raise ConfigError(
                f"no memory on {device} for max_loras {num_slots} adapters of rank {max_rank}"
                f" ({num_slots * elements * self._platform.dtype.itemsize} bytes): {error}",
                param="max_loras",
            ) from error
        self._table = torch.zeros((num_rows + 1, num_slots), dtype=torch.int32, device=device)
        for place in self._places:
            place.target.lora = self._weights_of(place, room)
        self._stream = torch.cuda.Stream(device) if self._platform.is_cuda else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._copies: dict[int, Future[None]] = {}

    def read(self, ref: AdapterRef) -> HostAdapter:
        folder = read_adapter(ref.path)
        if folder.adapter_id != ref.adapter_id:
            raise AdapterError(
                f"{ref.path}: its content is {folder.adapter_id}, but adapter {ref.name} was"
                f" {ref.adapter_id}: the folder changed; load it anew",
                param="adapter_id",
            )
        check_adapter(folder, self._spec, self._max_rank)
        return self._packed(folder)

    def forget(self, host: HostCopy) -> None:
        """Nothing to do: memory goes with its last reference."""

    def copy(self, host: HostCopy, slot: int, done: Copied) -> None:
        if not isinstance(host, HostAdapter):
            raise BatonError(f"{host!r} was not read by this pool")
        after: torch.cuda.Event | None = None
        if self._platform.is_cuda:
            # What was launched up to now may still read the slot.
            after = torch.cuda.current_stream(self._platform.device).record_event()
        future = self._thread.submit(self._copy, host, slot, after)
        self._copies[slot] = future
        future.add_done_callback(lambda future: done(future.exception()))

    def wait(self, slot: int) -> None:
        """Until the last copy into the slot is there; raises what it failed with."""
        future = self._copies.get(slot)
        if future is not None:
            future.result()

    def close(self) -> None:
        """Waits for a copy under way."""
        self._thread.shutdown()

    def _copy(self, host: HostAdapter, slot: int, after: torch.cuda.Event | None) -> None:
        into = self.flat[slot, : host.flat.shape[0]]
        if self._stream is None or after is None:
            into.copy_(host.flat)
            self._table[:, slot].copy_(host.table)
            return
        with torch.cuda.device(self._platform.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            into.copy_(host.flat, non_blocking=True)
            self._table[:, slot].copy_(host.table, non_blocking=True)
            self._stream.synchronize()

    def _weights_of(self, place: _Place, room: int) -> LoraWeights:
        last_row = place.first_row + len(place.heights)
        return LoraWeights(
            pool=self.flat,
            rooms=self._table[-1],
            ranks=self._table[place.first_row : last_row],
            heights=place.heights,
            width=place.width,
            a_offset=place.a_offset,
            b_offset=place.b_offset,
            max_rank=room,
        )

    def _packed(self, folder: AdapterFolder) -> HostAdapter:
        modules = {module.name: module for module in folder.modules}
        used = [p for p in self._places if any(name in modules for name in p.target.modules)]
        room, pinned = _rounded(folder.rank, RANK_UNIT), self._platform.is_cuda
        elements = used[-1].end * room
        try:
            flat = torch.zeros(elements, dtype=self._platform.dtype, pin_memory=pinned)
        except RuntimeError as error:
            raise OverloadedError(
                f"{folder.path}: no memory for {elements * self._platform.dtype.itemsize} bytes of"
                f" an adapter; unload others: {error}",
                param="max_cpu_loras",
            ) from error
        table = torch.zeros(self._table.shape[0], dtype=torch.int32, pin_memory=pinned)
        table[-1] = room
        for place in used:
            for i, name in enumerate(place.target.modules):
                if name in modules:
                    table[place.first_row + i] = modules[name].rank
                    self._pack(modules[name], place, i, flat, room)
        return HostAdapter(flat, table)

    def _pack(self, module: AdapterModule, place: _Place, i: int, flat: Tensor, room: int) -> None:
        a = torch.from_numpy(module.a.floats())[:, place.target.columns]
        b = torch.from_numpy(module.b.floats())[place.target.rows[i]] * module.scaling
        if not torch.isfinite(b.to(flat.dtype)).all() or not torch.isfinite(a.to(flat.dtype)).all():
            raise AdapterError(
                f"{module.a.name}, {module.b.name}: a value, times its scaling {module.scaling:g},"
                f" is beyond {self._platform.dtype_name}",
                param=module.b.name,
            )
        width, heights = place.width, place.heights
        a_start, b_start = place.a_offset * room, place.b_offset * room
        if module.name == EMBEDDING:
            flat[a_start : a_start + width * room].view(width, room)[:, : module.rank] = a.t()
        else:
            rows = flat[a_start : a_start + len(heights) * room * width].view(-1, room, width)
            rows[i, : module.rank] = a
        features = flat[b_start : b_start + sum(heights) * room].view(-1, room)
        first = sum(heights[:i])
        features[first : first + heights[i], : module.rank] = b


def _places(weights: Weights) -> list[_Place]:
    """One after the other; embedding and head come last, so that most adapters end before them."""
    places: list[_Place] = []
    offset, row = 0, 0
    for target in weights.targets:
        a_size = len(target.modules) * _length(target.columns)
        b_offset = offset + _rounded(a_size, OFFSET_UNIT)
        places.append(_Place(target, offset, b_offset, row))
        offset = _rounded(places[-1].end, OFFSET_UNIT)
        row += len(target.modules)
    return places


def _length(part: slice) -> int:
    return int(part.stop) - int(part.start)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
