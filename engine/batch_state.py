"""The running batch on the device, one row per slot, and what a step reads of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.engine.batch import ScheduledRow
from baton.engine.models.forward_batch import ForwardBatch
from baton.engine.request import Request
from baton.engine.transfer import Upload, to_device
from baton.kernels.paged_attention import plan_attention

Ints = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class StepShape:
    """A step's rows as host arrays: slots, first new position and number of new tokens of each."""

    slots: Ints
    starts: Ints
    lens: Ints
    ends: Ints

    @classmethod
    def of(cls, rows: Sequence[ScheduledRow]) -> StepShape:
        slots = np.array([row.request.slot for row in rows], dtype=np.int64)
        starts = np.array([row.start for row in rows], dtype=np.int64)
        lens = np.array([row.num_new_tokens for row in rows], dtype=np.int64)
        return cls(slots=slots, starts=starts, lens=lens, ends=lens.cumsum())


@dataclass(slots=True, kw_only=True)
class StepDraft:
    """Places of a step's arrays in its upload, and the bounds that the host knows."""

    token_places: int
    positions: int
    slot_mapping: int
    query_start: int
    context_lens: int
    slots: int
    new_blocks: int | None
    max_query_len: int
    max_context_len: int


class BatchState:
    """Token buffers and block tables of the running requests.

    tokens: int32 [max_running, max_model_len + 1]; known tokens of each row. Sampling writes the
        new token here on the device, and the next step reads it from here: it never waits for the
        host.
    block_tables: int32 [max_running, max_blocks]. The host keeps a mirror to compute slot mappings
        from; on CPU both are the same memory.
    """

    def __init__(
        self,
        max_running: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        *,
        mirrored: bool | None = None,
    ) -> None:
        """`mirrored` False lets host and device share the block tables (None: if they can)."""
        self.width = max_model_len + 1
        self.tokens = torch.zeros((max_running, self.width), dtype=torch.int32, device=device)
        self._block_size = block_size
        self._device = device
        max_blocks = -(-self.width // block_size)
        self._host_tables = np.zeros((max_running, max_blocks), dtype=np.int32)
        self._num_blocks = [0] * max_running
        self._mirrored = device.type != "cpu" if mirrored is None else mirrored
        host = torch.from_numpy(self._host_tables)
        self.block_tables = host.to(device, copy=True) if self._mirrored else host

    def write(self, request: Request) -> None:
        """The request entered `request.slot`: its known tokens go to the device, its blocks follow
        with the first step."""
        tokens = to_device(np.array(request.token_ids, dtype=np.int32), self._device)
        self.tokens[request.slot, : len(request.token_ids)] = tokens
        self._num_blocks[request.slot] = 0

    def draft(self, rows: Sequence[ScheduledRow], shape: StepShape, upload: Upload) -> StepDraft:
        """Queues the step's arrays for upload."""
        new_blocks = self._take_new_blocks(rows, upload)
        first = shape.ends - shape.lens
        if shape.ends[-1] == len(rows):
            slots, positions = shape.slots, shape.starts
        else:
            slots = np.repeat(shape.slots, shape.lens)
            positions = np.arange(shape.ends[-1]) + np.repeat(shape.starts - first, shape.lens)
        blocks, offsets = np.divmod(positions, self._block_size)
        slot_mapping = self._host_tables[slots, blocks] * np.int64(self._block_size) + offsets
        query_start = np.zeros(len(rows) + 1, dtype=np.int32)
        query_start[1:] = shape.ends
        context_lens = (shape.starts + shape.lens).astype(np.int32)
        return StepDraft(
            token_places=upload.add(slots * self.width + positions),
            positions=upload.add(positions),
            slot_mapping=upload.add(slot_mapping),
            query_start=upload.add(query_start),
            context_lens=upload.add(context_lens),
            slots=upload.add(shape.slots),
            new_blocks=new_blocks,
            max_query_len=int(shape.lens.max()),
            max_context_len=int(context_lens.max()),
        )

    def forward_batch(
        self,
        draft: StepDraft,
        tensors: list[Tensor],
        kv_layers: tuple[Tensor, ...],
        windows: Collection[int | None],
    ) -> ForwardBatch:
        """The step's batch, with what `Upload.send` returned; `windows` are those of the layers."""
        if draft.new_blocks is not None:
            slots, columns, blocks = tensors[draft.new_blocks]
            self.block_tables.index_put_((slots, columns), blocks.to(torch.int32))
        columns = -(-draft.max_context_len // self._block_size)
        tables = self.block_tables[:, :columns].index_select(0, tensors[draft.slots])
        query_start, context_lens = tensors[draft.query_start], tensors[draft.context_lens]
        return ForwardBatch(
            kv_layers=kv_layers,
            positions=tensors[draft.positions],
            slot_mapping=tensors[draft.slot_mapping],
            query_start=query_start,
            context_lens=context_lens,
            block_tables=tables,
            max_query_len=draft.max_query_len,
            max_context_len=draft.max_context_len,
            plans={
                window: plan_attention(
                    kv_layers[0],
                    query_start,
                    context_lens,
                    tables,
                    max_query_len=draft.max_query_len,
                    sliding_window=window,
                )
                for window in windows
            },
        )

    def _take_new_blocks(self, rows: Sequence[ScheduledRow], upload: Upload) -> int | None:
        """Brings the host's tables up to date; block lists only grow while a request is in."""
        triples: list[tuple[int, int, int]] = []
        for row in rows:
            request = row.request
            known = self._num_blocks[request.slot]
            block_ids = request.block_ids
            if len(block_ids) == known:
                continue
            self._host_tables[request.slot, known : len(block_ids)] = block_ids[known:]
            self._num_blocks[request.slot] = len(block_ids)
            if self._mirrored:
                triples += [
                    (request.slot, column, block_ids[column])
                    for column in range(known, len(block_ids))
                ]
        if not triples:
            return None
        return upload.add(np.ascontiguousarray(np.array(triples, dtype=np.int64).T))
