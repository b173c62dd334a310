"""Chooses tokens from logits: batched, with per-row parameters and no host synchronisation.

Order: grammar masks, logit bias, bans of end tokens, penalties, min-p, top-k, top-p, then the
Gumbel-max draw, `argmax(logits + temperature * noise)`, which for temperature 0 is the argmax of
the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baton.engine.noise import token_keys
from baton.engine.sampling_state import (
    ALL,
    FREQUENCY,
    PRESENCE,
    REPETITION,
    Rows,
    SamplingPlan,
    SamplingState,
)
from baton.kernels.sampling import Noise, draw
from baton.kernels.token_mask import token_mask


class Logprobs(NamedTuple):
    """Of n positions: the token's log-probability float32 [n], its rank int64 [n] (1: the most
    likely), and the k most likely tokens: values float32 [n, k], ids int64 [n, k]."""

    values: Tensor
    ranks: Tensor
    top_values: Tensor
    top_ids: Tensor


class Sampled(NamedTuple):
    """tokens: int64 [rows]. logprobs: of the plan's `report` rows, or None."""

    tokens: Tensor
    logprobs: Logprobs | None


class Sampler:
    """Samples from logits [rows, vocab], which it may overwrite."""

    def __init__(self, state: SamplingState, device: torch.device) -> None:
        self._state = state
        self._token_keys = token_keys(state.vocab_size, device)

    def sample(self, logits: Tensor, plan: SamplingPlan) -> Sampled:
        """One token per row; penalised rows' counts are brought up to date."""
        raw = None
        if plan.report is not None:
            raw = logits.clone() if plan.report is ALL else logits[plan.report]
        if plan.masks is not None:
            token_mask(logits, plan.masks.bitmask, plan.masks.rows)
        if plan.adjusts:
            logits = logits.float()
            self._adjust(logits, plan)
        noise = None
        if plan.keys is not None and plan.temperatures is not None:
            noise = Noise(
                row_keys=plan.keys, token_keys=self._token_keys, temperatures=plan.temperatures
            )
        tokens = draw(logits, noise, plan.filters)
        if plan.penalty is not None and self._state.counts is not None:
            places = (plan.slots[plan.penalty], tokens[plan.penalty])
            self._state.counts[places] += 2
        if raw is None or plan.report is None:
            return Sampled(tokens, None)
        return Sampled(tokens, token_logprobs(raw, tokens[plan.report], plan.num_top))

    def _adjust(self, logits: Tensor, plan: SamplingPlan) -> None:
        for rows, table in ((plan.bias, self._state.bias), (plan.ban, self._state.banned)):
            if rows is not None:
                slots = plan.slots[rows]
                biased = logits[rows].scatter_add_(1, table.ids[slots], table.values[slots])
                _put(logits, rows, biased)
        if (
            plan.penalty is not None
            and plan.penalties is not None
            and self._state.counts is not None
        ):
            counts = self._state.counts[plan.slots[plan.penalty]]
            changed = penalize(logits[plan.penalty], counts, plan.penalties)
            _put(logits, plan.penalty, changed)


def _put(logits: Tensor, rows: Rows, changed: Tensor) -> None:
    """Writes rows back, unless they were changed where they are."""
    if changed.data_ptr() != logits.data_ptr():
        logits[rows] = changed


def penalize(logits: Tensor, counts: Tensor, params: Tensor) -> Tensor:
    """Repetition over prompt and output, presence and frequency over output only.

    logits float32 [n, vocab]; counts int32 [n, vocab] as in SamplingState; params
    float32 [n, 3].
    """
    repetition = params[:, REPETITION, None]
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts > 0, scaled, logits)
    outputs = counts >> 1
    logits -= params[:, FREQUENCY, None] * outputs
    logits -= params[:, PRESENCE, None] * (outputs > 0)
    return logits


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> Logprobs:
    """Log-probabilities under softmax(logits [n, vocab]) of `tokens` [n] and of the best ones."""
    logits = logits.float()
    total = logits.logsumexp(dim=-1)
    chosen = logits.gather(1, tokens[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    top = logits.topk(num_top, dim=-1)
    return Logprobs(chosen[:, 0] - total, ranks, top.values - total[:, None], top.indices)
