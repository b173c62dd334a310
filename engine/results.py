"""What a step reports: which positions, and how their numbers read on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from baton.engine.adapters.step import StepAdapters
from baton.engine.batch import RunResult, ScheduledRow
from baton.engine.models.layers import CausalLM
from baton.engine.sampler import Logprobs, token_logprobs
from baton.engine.transfer import Download
from baton.protos.types import TokenLogprob

# Positions whose logits exist at a time: 128 x 150k floats are 77 MB.
SLICE_POSITIONS: Final = 128


@dataclass(frozen=True, slots=True)
class PromptShare:
    """One row's prompt positions of a step: `count` tokens of the flat batch from `first` on, each
    reporting the token that follows it, with `num_top` alternatives."""

    request_id: str
    first: int
    count: int
    num_top: int
    adapter_slot: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a step's rows want reported. `num_top` has an entry per sampled row, None: nothing."""

    num_top: tuple[int | None, ...] = ()
    shares: tuple[PromptShare, ...] = ()


class PendingStep:
    """A step that runs on the device. `wait` brings its results to the host.

    Takes sampled tokens int64 [rows] (if any), their Logprobs (if a row wants them), and for each
    share its tokens and Logprobs, flat.
    """

    def __init__(self, asked: Asked, tensors: list[Tensor]) -> None:
        self._asked = asked
        self._download = Download(tensors)
        self._result: RunResult | None = None

    def wait(self) -> RunResult:
        """Blocks until the step is done."""
        if self._result is None:
            self._result = self._read_all()
        return self._result

    def _read_all(self) -> RunResult:
        asked, tensors = self._asked, iter(self._download.wait())
        result = RunResult()
        if asked.num_top:
            result.sampled = next(tensors).tolist()
            result.logprobs = [None] * len(asked.num_top)
        reporting = [i for i, wanted in enumerate(asked.num_top) if wanted is not None]
        if reporting:
            chosen = [result.sampled[i] for i in reporting]
            read = _read(chosen, tensors, [asked.num_top[i] or 0 for i in reporting])
            for i, logprob in zip(reporting, read, strict=True):
                result.logprobs[i] = logprob
        for share in asked.shares:
            tokens = next(tensors).tolist()
            read = _read(tokens, tensors, [share.num_top] * share.count)
            result.prompt_logprobs[share.request_id] = read
        return result


def prompt_shares(rows: Sequence[ScheduledRow]) -> list[PromptShare]:
    """The rows that ask for prompt log-probabilities and compute such positions in this step."""
    shares: list[PromptShare] = []
    first = 0
    for row in rows:
        request = row.request
        if request.needs_prompt_logprobs:
            # The prompt's last token predicts the first output, which is not the prompt's.
            left = request.num_prompt_tokens - 1 - row.start
            count = min(row.num_new_tokens, left)
            if count > 0:
                num_top = request.sampling.prompt_logprobs or 0
                slot = request.adapter_slot
                shares.append(PromptShare(request.request_id, first, count, num_top, slot))
        first += row.num_new_tokens
    return shares


def prompt_tensors(
    model: CausalLM,
    hidden: Tensor,
    following: Tensor,
    shares: Sequence[PromptShare],
    adapters: StepAdapters,
) -> list[Tensor]:
    """Per share its tokens and Logprobs, flat; logits are made for a slice of positions at a time.

    hidden: [num_tokens, hidden] of the step. following: int64 [num_tokens], the token after each.
    """
    found: list[Tensor] = []
    for share in shares:
        stop = share.first + share.count
        parts = [
            token_logprobs(
                model.logits(
                    hidden[at], lora=adapters.uniform(share.adapter_slot, at.stop - at.start)
                ),
                following[at],
                share.num_top,
            )
            for at in (
                slice(start, min(start + SLICE_POSITIONS, stop))
                for start in range(share.first, stop, SLICE_POSITIONS)
            )
        ]
        found.append(following[share.first : stop])
        found += [torch.cat(columns) for columns in zip(*parts, strict=True)]
    return found


def _read(
    tokens: Sequence[int], tensors: Iterator[Tensor], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Takes a Logprobs from `tensors`; position i keeps its `num_top[i]` best alternatives."""
    values, ranks, top_values, top_ids = (next(tensors).tolist() for _ in Logprobs._fields)
    return [
        TokenLogprob(
            token,
            values[i],
            ranks[i],
            tuple(zip(top_ids[i][:wanted], top_values[i][:wanted], strict=True)),
        )
        for i, (token, wanted) in enumerate(zip(tokens, num_top, strict=True))
    ]
