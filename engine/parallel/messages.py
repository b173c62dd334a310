"""What rank 0 tells the others of a step: flat int32 arrays, from rows and back to rows.

A message holds the requests that entered the batch since the last one, with their tokens, and for
each row of the step its slot, share and new blocks. What only sampling needs stays on rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from baton.engine.batch import ScheduledRow
from baton.engine.request import Request, RequestState
from baton.engine.running import BatchRows
from baton.protos.types import GenerateRequest, SamplingParams

Ints = npt.NDArray[np.int32]

HEADER: Final = 2
# Per entered request: slot, prompt tokens, all tokens, whether it wants prompt log-probabilities.
ENTERED: Final = 4
# Per row, one column each: slot, first new position, new tokens, flags, new blocks.
ROW: Final = 5
SAMPLES: Final = 1
DECODES: Final = 2


class StepWriter:
    """Rank 0's side: notes who enters the batch, and writes steps."""

    def __init__(self) -> None:
        self._entered: list[Ints] = []
        self._num_blocks: dict[int, int] = {}

    def enter(self, request: Request) -> None:
        """The request takes `request.slot` before the next step."""
        header = (
            request.slot,
            request.num_prompt_tokens,
            len(request.token_ids),
            request.needs_prompt_logprobs,
        )
        self._entered.append(np.array((*header, *request.token_ids), dtype=np.int32))
        self._num_blocks[request.slot] = 0

    def write(self, rows: Sequence[ScheduledRow]) -> bytes:
        """A step of these rows."""
        table = np.empty((ROW, len(rows)), dtype=np.int32)
        table[:] = np.array([self._columns(row) for row in rows], dtype=np.int32).T
        blocks: list[int] = []
        for row, count in zip(rows, table[ROW - 1].tolist(), strict=True):
            if count:
                blocks += row.request.block_ids[-count:]
        header = np.array([len(self._entered), len(rows)], dtype=np.int32)
        new_blocks = np.array(blocks, dtype=np.int32)
        message = np.concatenate([header, *self._entered, table.reshape(-1), new_blocks])
        self._entered = []
        return message.tobytes()

    def _columns(self, row: ScheduledRow) -> tuple[int, int, int, int, int]:
        request = row.request
        slot, num_blocks = request.slot, len(request.block_ids)
        added = num_blocks - self._num_blocks[slot]
        self._num_blocks[slot] = num_blocks
        decodes = DECODES if request.state is RequestState.DECODING else 0
        flags = decodes | (SAMPLES if row.samples else 0)
        return slot, request.num_computed_tokens, row.num_new_tokens, flags, added


class StepReader:
    """The other ranks' side: requests as far as a runner there must know them, by slot."""

    def __init__(self, rows: BatchRows) -> None:
        self._rows = rows
        self._requests: dict[int, Request] = {}

    def read(self, message: bytes | bytearray) -> list[ScheduledRow]:
        """Lets requests enter the batch, then returns the rows of the step."""
        values = np.frombuffer(message, dtype=np.int32)
        num_entered, num_rows = values[:HEADER].tolist()
        place = HEADER
        for _ in range(num_entered):
            place += self._enter(values[place:])
        table = values[place : place + ROW * num_rows].reshape(ROW, num_rows)
        blocks = values[place + ROW * num_rows :].tolist()
        step: list[ScheduledRow] = []
        taken = 0
        for slot, start, count, flags, added in table.T.tolist():
            request = self._requests[slot]
            request.num_computed_tokens = start
            request.block_ids += blocks[taken : taken + added]
            taken += added
            prefilling = RequestState.PREFILLING
            request.state = RequestState.DECODING if flags & DECODES else prefilling
            step.append(
                ScheduledRow(request=request, num_new_tokens=count, samples=bool(flags & SAMPLES))
            )
        return step

    def _enter(self, values: Ints) -> int:
        slot, num_prompt_tokens, num_tokens, reports = values[:ENTERED].tolist()
        tokens = values[ENTERED : ENTERED + num_tokens].tolist()
        sampling = SamplingParams(temperature=0.0, prompt_logprobs=0 if reports else None)
        known = GenerateRequest(
            request_id=str(slot),
            prompt_token_ids=tokens[:num_prompt_tokens],
            output_token_ids=tokens[num_prompt_tokens:],
            sampling=sampling,
        )
        request = Request(known, arrival=0, state=RequestState.PREFILLING, now_s=0.0)
        # A replay that still owes its prompt's report says so itself.
        request.prompt_logprobs_done = not reports
        request.slot = slot
        self._requests[slot] = request
        self._rows.add_row(request)
        return ENTERED + int(num_tokens)
