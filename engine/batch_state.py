"""The running batch on the device, one row per slot, and what a step reads of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.engine.adapters.step import NUM_ARRAYS as NUM_ADAPTER_ARRAYS
from baton.engine.adapters.step import StepAdapters
from baton.engine.batch import ScheduledRow
from baton.engine.graphs import Adapted, Bucket
from baton.engine.kv_pool import KVPool
from baton.engine.models.forward_batch import ForwardBatch
from baton.engine.request import Request
from baton.engine.transfer import Sent, Upload, filled, to_device
from baton.kernels.paged_attention import plan_attention

Ints = npt.NDArray[np.int64]
# Of StepArrays in an upload; those of the adapters follow, where there are any.
NUM_ARRAYS: Final = 7
# The last of them.
WRITE_PLACES: Final = 6


@dataclass(slots=True, kw_only=True)
class StepShape:
    """A step's rows as host arrays: slots, first new position and number of new tokens of each.

    ends: where each row ends among the step's tokens. sampling: the rows that sample.
    """

    slots: Ints
    starts: Ints
    lens: Ints
    ends: Ints
    sampling: Ints

    @classmethod
    def of(cls, rows: Sequence[ScheduledRow]) -> StepShape:
        slots = np.array([row.request.slot for row in rows], dtype=np.int64)
        starts = np.array([row.start for row in rows], dtype=np.int64)
        lens = np.array([row.num_new_tokens for row in rows], dtype=np.int64)
        sampling = np.flatnonzero([row.samples for row in rows])
        return cls(slots=slots, starts=starts, lens=lens, ends=lens.cumsum(), sampling=sampling)


@dataclass(slots=True, kw_only=True)
class StepArrays:
    """What a step's forward pass reads, in the order in which it travels.

    token_places: where in the flat token buffer each token's id is. The others as in ForwardBatch,
    and `slots` [num_rows], whose block tables the rows have. write_places: where the token goes
    that each row samples, if it does.
    """

    token_places: Ints
    positions: Ints
    slot_mapping: Ints
    query_start: Ints
    context_lens: Ints
    slots: Ints
    write_places: Ints

    def padded(self, bucket: Bucket, nowhere: int) -> StepArrays:
        """With tokens that write nothing and rows that see nothing, up to the bucket's shape.

        nowhere: the place that such a row's token goes to.
        """
        num_tokens, num_rows = bucket.num_tokens, bucket.num_rows
        last = self.query_start[-1]
        query_start = filled(self.query_start, num_rows + 1, last)
        if bucket.decodes:
            # Here a padding row has a token, so that attention writes zeros for it.
            query_start[len(self.query_start) :] += np.arange(1, num_rows - len(self.slots) + 1)
        return StepArrays(
            token_places=filled(self.token_places, num_tokens, 0),
            positions=filled(self.positions, num_tokens, 0),
            slot_mapping=filled(self.slot_mapping, num_tokens, -1),
            query_start=query_start,
            context_lens=filled(self.context_lens, num_rows, 0),
            slots=filled(self.slots, num_rows, 0),
            write_places=filled(self.write_places, num_rows, nowhere),
        )

    def add_to(self, upload: Upload) -> int:
        """Queues all seven; returns the first one's place, the others follow."""
        place = upload.add(self.token_places)
        upload.add(self.positions)
        upload.add(self.slot_mapping)
        upload.add(self.query_start.astype(np.int32))
        upload.add(self.context_lens.astype(np.int32))
        upload.add(self.slots)
        upload.add(self.write_places)
        return place


@dataclass(slots=True, kw_only=True)
class StepDraft:
    """Where a step's arrays are in its upload, half-open, the places of what the device does not
    know yet, and the bounds that the host knows."""

    first: int
    end: int
    new_blocks: int | None
    given: int | None
    max_query_len: int
    max_context_len: int

    def inputs(self, sent: Sent) -> list[Tensor]:
        """What `BatchState.forward_batch` takes, of what `Upload.send` returned."""
        return sent[self.first : self.end]


class BatchState:
    """Token buffers and block tables of the running requests.

    tokens: int32 [max_running + 1, max_model_len + 1]; known tokens of each row. Sampling writes
        the new token here on the device, and the next step reads it from here: it never waits for
        the host. The last row is nobody's: rows that sample nothing write there.
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
        adapter_slots: int = 0,
        mirrored: bool | None = None,
    ) -> None:
        """`mirrored` False lets host and device share the block tables (None: if they can).

        adapter_slots: of the pool of adapters; 0: there is none.
        """
        self.adapters = StepAdapters(max_running, adapter_slots, device)
        self.width = max_model_len + 1
        self.tokens = torch.zeros((max_running + 1, self.width), dtype=torch.int32, device=device)
        self._nowhere = max_running * self.width
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
        self.adapters.write(request.slot, request.adapter_slot)

    def draft(
        self,
        rows: Sequence[ScheduledRow],
        shape: StepShape,
        upload: Upload,
        bucket: Bucket | None = None,
    ) -> StepDraft:
        """Queues the step's arrays for upload, padded to the bucket if there is one.

        Those that a graph reads come first, so that their places depend on the bucket alone.
        """
        new_blocks = self._take_new_blocks(rows)
        first = shape.ends - shape.lens
        if shape.ends[-1] == len(rows):
            slots, positions = shape.slots, shape.starts
        else:
            slots = np.repeat(shape.slots, shape.lens)
            positions = np.arange(shape.ends[-1]) + np.repeat(shape.starts - first, shape.lens)
        blocks, offsets = np.divmod(positions, self._block_size)
        slot_mapping = self._host_tables[slots, blocks] * np.int64(self._block_size) + offsets
        query_start = np.zeros(len(rows) + 1, dtype=np.int64)
        query_start[1:] = shape.ends
        arrays = StepArrays(
            token_places=slots * self.width + positions,
            positions=positions,
            slot_mapping=slot_mapping,
            query_start=query_start,
            context_lens=shape.starts + shape.lens,
            slots=shape.slots,
            write_places=self._write_places(shape),
        )
        max_query_len, max_context_len = int(shape.lens.max()), int(arrays.context_lens.max())
        if bucket is not None:
            arrays = arrays.padded(bucket, self._nowhere)
            max_query_len, max_context_len = self.bounds(bucket)
        first_place = arrays.add_to(upload)
        num_arrays = NUM_ARRAYS
        adapter_slots = self.adapters.of(shape.slots)
        if adapter_slots is not None:
            by_token = np.repeat(adapter_slots, shape.lens)
            few = None if bucket is None else bucket.adapters is Adapted.FEW
            self.adapters.plan(by_token, len(arrays.positions), upload, few=few)
            num_arrays += NUM_ADAPTER_ARRAYS
        return StepDraft(
            first=first_place,
            end=first_place + num_arrays,
            new_blocks=None if new_blocks is None else upload.add(new_blocks),
            given=self._give(rows, upload),
            max_query_len=max_query_len,
            max_context_len=max_context_len,
        )

    def bounds(self, bucket: Bucket) -> tuple[int, int]:
        """Longest query and context that any step of a bucket may have."""
        max_context_len = self.block_tables.shape[1] * self._block_size
        return (1 if bucket.decodes else max_context_len), max_context_len

    def empty_step(self, bucket: Bucket, upload: Upload) -> None:
        """Queues the arrays of a step that computes nothing, which is all padding."""
        none = np.zeros(0, dtype=np.int64)
        arrays = StepArrays(
            token_places=none,
            positions=none,
            slot_mapping=none,
            query_start=np.zeros(1, dtype=np.int64),
            context_lens=none,
            slots=none,
            write_places=none,
        )
        arrays.padded(bucket, self._nowhere).add_to(upload)
        if bucket.adapters:
            few = bucket.adapters is Adapted.FEW
            self.adapters.plan(none, bucket.num_tokens, upload, few=few)

    def write_sampled(self, places: Tensor, chosen: Tensor) -> None:
        """Token ids int64 [n] to places [n] of `StepArrays.write_places`."""
        self.tokens.view(-1)[places] = chosen.to(self.tokens.dtype)

    def _write_places(self, shape: StepShape) -> Ints:
        places = np.full(len(shape.slots), self._nowhere, dtype=np.int64)
        rows = shape.sampling
        places[rows] = shape.slots[rows] * self.width + shape.starts[rows] + shape.lens[rows]
        return places

    def take_news(self, draft: StepDraft, sent: Sent) -> None:
        """Writes the step's new blocks and given tokens into the device's tables."""
        if draft.given is not None:
            places, tokens = sent[draft.given]
            self.tokens.view(-1)[places] = tokens.to(torch.int32)
        if draft.new_blocks is not None:
            slots, columns, blocks = sent[draft.new_blocks]
            self.block_tables.index_put_((slots, columns), blocks.to(torch.int32))

    def forward_batch(
        self,
        inputs: list[Tensor],
        bounds: tuple[int, int],
        pool: KVPool,
        windows: Collection[int | None],
    ) -> ForwardBatch:
        """The step's batch, of `StepDraft.inputs` and the host's bounds; for layers' `windows`."""
        _, positions, slot_mapping, query_start, context_lens, slots, _ = inputs[:NUM_ARRAYS]
        max_query_len, max_context_len = bounds
        columns = -(-max_context_len // self._block_size)
        tables = self.block_tables[:, :columns].index_select(0, slots)
        return ForwardBatch(
            kv_layers=pool.layers,
            kv_scales=pool.scales,
            positions=positions,
            slot_mapping=slot_mapping,
            query_start=query_start,
            context_lens=context_lens,
            block_tables=tables,
            max_query_len=max_query_len,
            max_context_len=max_context_len,
            lora=self.adapters.batch(inputs, NUM_ARRAYS) if len(inputs) > NUM_ARRAYS else None,
            plans={
                window: plan_attention(
                    pool.layers[0],
                    query_start,
                    context_lens,
                    tables,
                    max_query_len=max_query_len,
                    sliding_window=window,
                )
                for window in windows
            },
        )

    def _give(self, rows: Sequence[ScheduledRow], upload: Upload) -> int | None:
        """Queues the tokens that no step sampled, with their places, [2, n]."""
        pairs = [
            (row.request.slot * self.width + row.start + i, token_id)
            for row in rows
            for i, token_id in enumerate(row.given)
        ]
        if not pairs:
            return None
        return upload.add(np.ascontiguousarray(np.array(pairs, dtype=np.int64).T))

    def _take_new_blocks(self, rows: Sequence[ScheduledRow]) -> Ints | None:
        """Brings the host's tables up to date; block lists only grow while a request is in.

        Returns slots, columns and blocks of what the device's tables lack, [3, n].
        """
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
        return np.ascontiguousarray(np.array(triples, dtype=np.int64).T)
