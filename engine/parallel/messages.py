"""What rank 0 tells the others of a step: flat int32 arrays, from rows and back to rows.

A message holds the requests that entered the batch since the last one, with their tokens, and for
each row of the step its slot, share and new blocks. What only sampling needs stays on rank 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from baton.engine.batch import ScheduledRow
from baton.engine.request import Request, RequestState
from baton.engine.running import BatchRows
from baton.protos.types import GenerateRequest, SamplingParams

HEADER: Final = 2
# Per entered request: slot, prompt tokens, all tokens, whether it wants prompt log-probabilities,
# and the slot of its adapter.
ENTERED: Final = 5
# Per row: slot, first new position, new tokens, flags, new blocks, given tokens.
ROW: Final = 6
# In place of a step: an adapter's key and slot.
COPY: Final = -1
FORGET: Final = -2
SAMPLES: Final = 1
DECODES: Final = 2


def write_command(command: int, key: int, slot: int) -> bytes:
    """COPY of an adapter into a slot, or FORGET it."""
    return array("i", (command, key, slot)).tobytes()


def read_command(message: bytes | bytearray) -> tuple[int, int, int] | None:
    """What `write_command` wrote; None for a step."""
    values = array("i")
    values.frombytes(message[: 3 * values.itemsize])
    return (values[0], values[1], values[2]) if values[0] < 0 else None


class StepWriter:
    """Rank 0's side: notes who enters the batch, and writes steps."""

    def __init__(self) -> None:
        self._entered: list[array[int]] = []
        self._num_blocks: dict[int, int] = {}

    def enter(self, request: Request) -> None:
        """The request takes `request.slot` before the next step."""
        tokens = request.token_ids
        reports = int(request.needs_prompt_logprobs)
        lengths = (request.num_prompt_tokens, len(tokens))
        header = (request.slot, *lengths, reports, request.adapter_slot)
        self._entered.append(array("i", (*header, *tokens)))
        self._num_blocks[request.slot] = 0

    def write(self, rows: Sequence[ScheduledRow]) -> bytes:
        """A step of these rows."""
        # Plain lists and one array: for a few hundred small numbers numpy's conversions cost more.
        table: list[int] = []
        blocks: list[int] = []
        given: list[int] = []
        known = self._num_blocks
        for row in rows:
            request = row.request
            slot, block_ids = request.slot, request.block_ids
            added = len(block_ids) - known[slot]
            if added:
                known[slot] += added
                blocks += block_ids[-added:]
            flags = SAMPLES * row.samples + DECODES * row.decodes
            if row.given:
                given += row.given
            table += (slot, row.start, row.num_new_tokens, flags, added, len(row.given))
        message = array("i", (len(self._entered), len(rows)))
        for entered in self._entered:
            message += entered
        self._entered = []
        message.extend(table)
        message.extend(blocks)
        message.extend(given)
        return message.tobytes()


class StepReader:
    """The other ranks' side: requests as far as a runner there must know them, by slot."""

    def __init__(self, rows: BatchRows) -> None:
        self._rows = rows
        self._by_slot: dict[int, ScheduledRow] = {}

    def read(self, message: bytes | bytearray) -> list[ScheduledRow]:
        """Lets requests enter the batch, then returns the rows of the step.

        A row is good until the next read: each request has one, which is used again and again.
        """
        values = array("i")
        values.frombytes(message)
        num_entered, num_rows = values[:HEADER]
        place = HEADER
        for _ in range(num_entered):
            place += self._enter(values, place)
        end = place + ROW * num_rows
        step = []
        given = len(values) - sum(values[place + ROW - 1 : end : ROW])
        for at in range(place, end, ROW):
            slot, start, count, flags, added, num_given = values[at : at + ROW]
            row = self._by_slot[slot]
            request = row.request
            request.num_computed_tokens = row.start = start
            row.num_new_tokens = count
            row.samples, row.decodes = bool(flags & SAMPLES), bool(flags & DECODES)
            request.state = RequestState.DECODING if row.decodes else RequestState.PREFILLING
            if added:
                request.block_ids += values[end : end + added]
                end += added
            row.given = values[given : given + num_given]
            given += num_given
            step.append(row)
        return step

    def _enter(self, values: array[int], place: int) -> int:
        """Returns how many values it took."""
        header = values[place : place + ENTERED]
        slot, num_prompt_tokens, num_tokens, reports, adapter_slot = header
        tokens = values[place + ENTERED : place + ENTERED + num_tokens].tolist()
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
        request.slot, request.adapter_slot = slot, adapter_slot
        self._by_slot[slot] = ScheduledRow(request=request, num_new_tokens=0, samples=False)
        self._rows.add_row(request)
        return ENTERED + num_tokens
