"""Sampling parameters of the running batch: device tensors with one row per slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.engine.grammar.masks import TokenMasks
from baton.engine.noise import row_keys, seed_key
from baton.engine.request import Request
from baton.engine.transfer import Sent, Upload, to_device
from baton.kernels.sampling import Filters
from baton.protos.types import SamplingParams

# Columns of the penalties.
REPETITION, PRESENCE, FREQUENCY = range(3)
# Bits of `SamplingState` features: what a row needs beyond an argmax.
RANDOM, FILTER, PENALTY, BIAS, BAN, REPORT = (1 << bit for bit in range(6))


# Indices into a step's logits, int64, or the slice that stands for all of them.
Rows = Tensor | slice
ALL: Final = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """What one step's sampled rows need; a field that is None needs no work in this step.

    slots: int64 [rows], slot of each.
    keys: int32 [2, rows], noise keys, if a row is random; temperatures: float32 [rows], then.
    filters: top-k, top-p and min-p of the rows that have some.
    penalty: rows with penalties; penalties: float32 [those, 3], columns as named above.
    num_top: the most alternatives that a reported row wants. masks: tokens that rows may not have.
    """

    slots: Tensor
    keys: Tensor | None = None
    temperatures: Tensor | None = None
    filters: Filters | None = None
    penalty: Rows | None = None
    penalties: Tensor | None = None
    bias: Rows | None = None
    ban: Rows | None = None
    report: Rows | None = None
    masks: TokenMasks | None = None
    num_top: int = 0

    @property
    def adjusts(self) -> bool:
        """Whether a row's logits are changed before the draw."""
        return self.penalty is not None or self.bias is not None or self.ban is not None


class SparseRows:
    """Per slot a short list of (token id, value) that is added to its logits; padded with zeros."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.ids = torch.zeros((max_rows, 0), dtype=torch.int64, device=device)
        self.values = torch.zeros((max_rows, 0), dtype=torch.float32, device=device)

    def write(self, slot: int, pairs: Sequence[tuple[int, float]]) -> None:
        """Replaces the slot's list; the table grows to the longest list that it has held."""
        missing = len(pairs) - self.ids.shape[1]
        if missing > 0:
            self.ids = torch.nn.functional.pad(self.ids, (0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, missing))
        self.ids[slot] = 0
        self.values[slot] = 0.0
        ids = np.array([token_id for token_id, _ in pairs], dtype=np.int64)
        values = np.array([value for _, value in pairs], dtype=np.float32)
        self.ids[slot, : len(pairs)] = to_device(ids, self.ids.device)
        self.values[slot, : len(pairs)] = to_device(values, self.ids.device)


class SamplingState:
    """Written when a request enters the batch, read by every step.

    Numbers stay on the host, and those that a step needs go to the device with it; what is as wide
    as the vocabulary stays on the device.

    counts: int32 [max_running, vocab], 2 * occurrences in the output + 1 if in the prompt. Made by
        the first request with a penalty, and written only for such requests.
    """

    def __init__(
        self,
        max_running: int,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.vocab_size = vocab_size
        self.counts: Tensor | None = None
        self.bias = SparseRows(max_running, device)
        self.banned = SparseRows(max_running, device)
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._features = np.zeros(max_running, dtype=np.int64)
        self._seed_keys = np.zeros(max_running, dtype=np.uint64)
        self._ban_until = np.zeros(max_running, dtype=np.int64)
        self._temperatures = np.zeros(max_running, dtype=np.float32)
        self._min_p = np.zeros(max_running, dtype=np.float32)
        self._top_k = np.zeros(max_running, dtype=np.int32)
        self._top_p = np.zeros(max_running, dtype=np.float32)
        self._penalties = np.zeros((max_running, 3), dtype=np.float32)
        self._num_top = np.zeros(max_running, dtype=np.int64)

    def write(self, request: Request) -> None:
        """The request entered `request.slot` with its tokens known."""
        slot, sampling = request.slot, request.sampling
        features = _features(sampling)
        # Off means the whole vocabulary, so that rows with and without top-k share one comparison.
        self._top_k[slot] = min(sampling.top_k or self.vocab_size, self.vocab_size)
        self._seed_keys[slot] = seed_key(sampling.seed)
        self._num_top[slot] = sampling.logprobs or 0
        self._ban_until[slot] = request.num_prompt_tokens + sampling.min_tokens
        self._temperatures[slot] = sampling.temperature
        self._min_p[slot] = sampling.min_p
        self._top_p[slot] = sampling.top_p
        self._penalties[slot] = (
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        if features & BIAS:
            self.bias.write(slot, sampling.logit_bias)
        # A grammar's mask knows where its output may end, min_tokens included.
        if sampling.min_tokens > 0 and request.grammar is None:
            ends = dict.fromkeys(sampling.stop_token_ids)
            if not sampling.ignore_eos:
                ends |= dict.fromkeys(self._eos_token_ids)
            if ends:
                features |= BAN
                self.banned.write(slot, [(token_id, -torch.inf) for token_id in ends])
        if features & PENALTY:
            self._count(request)
        self._features[slot] = features

    def plan(
        self, slots: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], upload: Upload
    ) -> PlanDraft:
        """What the rows that sample in this step need; `positions` is where each token will go."""
        features = self._features[slots]
        wanted = int(np.bitwise_or.reduce(features)) if len(slots) else 0
        draft = PlanDraft(slots=upload.add(slots))
        if not wanted:
            return draft
        if wanted & RANDOM:
            draft.arrays["keys"] = upload.add(row_keys(self._seed_keys[slots], positions))
            draft.arrays["temperatures"] = upload.add(self._temperatures[slots])
        if wanted & FILTER:
            rows = np.flatnonzero(features & FILTER)
            at = slots[rows]
            draft.filters = upload.add(rows)
            for values in (self._min_p, self._top_k, self._top_p):
                upload.add(values[at])
        for name, bit in _ROW_FIELDS:
            if wanted & bit:
                rows = np.flatnonzero(features & bit)
                if bit == BAN:
                    rows = rows[positions[rows] < self._ban_until[slots[rows]]]
                if not len(rows):
                    continue
                draft.rows[name] = None if len(rows) == len(slots) else upload.add(rows)
                if bit == PENALTY:
                    draft.arrays["penalties"] = upload.add(self._penalties[slots[rows]])
                elif bit == REPORT:
                    draft.num_top = int(self._num_top[slots[rows]].max())
        return draft

    def _count(self, request: Request) -> None:
        if self.counts is None:
            shape = (len(self._features), self.vocab_size)
            self.counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
        tokens = np.array(request.token_ids, dtype=np.int64)
        prompt, output = np.split(tokens, [request.num_prompt_tokens])
        counts = 2 * np.bincount(output, minlength=self.vocab_size)
        counts[prompt] += 1
        self.counts[request.slot] = to_device(counts.astype(np.int32), self._device)


@dataclass(slots=True)
class PlanDraft:
    """A plan whose tensors are still places in an upload; a None among `rows` stands for all.

    filters: the first of four places, the filters' rows, min-p, top-k and top-p.
    """

    slots: int
    arrays: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)
    filters: int | None = None
    num_top: int = 0

    @property
    def greedy(self) -> bool:
        """Whether every row takes its most likely token, and reports nothing else."""
        return not self.arrays and not self.rows and self.filters is None

    def finish(self, tensors: Sent, masks: TokenMasks | None) -> SamplingPlan:
        """The plan, with what `Upload.send` returned."""
        found: dict[str, Any] = {name: tensors[place] for name, place in self.arrays.items()}
        for name, place in self.rows.items():
            found[name] = ALL if place is None else tensors[place]
        if self.filters is not None:
            found["filters"] = _filters(tensors, self.filters)
        return SamplingPlan(slots=tensors[self.slots], masks=masks, num_top=self.num_top, **found)


def _filters(tensors: Sent, first: int) -> Filters:
    rows, min_ps, top_ks, top_ps = tensors[first : first + 4]
    return Filters(rows=rows, min_ps=min_ps, top_ks=top_ks, top_ps=top_ps)


_ROW_FIELDS: Final = (
    ("penalty", PENALTY),
    ("bias", BIAS),
    ("ban", BAN),
    ("report", REPORT),
)


def _features(sampling: SamplingParams) -> int:
    """Greedy rows need no filters: the best token passes all of them."""
    features = 0
    if not sampling.greedy:
        features |= RANDOM
        if sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0:
            features |= FILTER
    if sampling.penalizes:
        features |= PENALTY
    if sampling.logit_bias:
        features |= BIAS
    if sampling.logprobs is not None:
        features |= REPORT
    return features
