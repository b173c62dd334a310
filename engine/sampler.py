"""Chooses tokens from logits: batched, with per-row parameters and no host synchronisation.

Order: grammar masks, logit bias, bans of end tokens, penalties, min-p, top-k, top-p, then the
Gumbel-max draw, `argmax(logits + temperature * noise)`, which for temperature 0 is the argmax of
the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baton.engine.noise import gumbel, token_keys
from baton.engine.sampling_state import (
    ALL,
    FREQUENCY,
    MIN_P,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Rows,
    SamplingPlan,
    SamplingState,
)
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
    """Samples from float32 logits [rows, vocab], which it may overwrite."""

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
        self._adjust(logits, plan)
        if plan.random is not None and plan.keys is not None:
            self._filter(logits, plan)
            temperatures = self._params(plan, plan.random)[:, TEMPERATURE, None]
            logits[plan.random] += gumbel(self._token_keys, plan.keys).mul_(temperatures)
        tokens = logits.argmax(dim=-1)
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
        if plan.penalty is not None and self._state.counts is not None:
            counts = self._state.counts[plan.slots[plan.penalty]]
            params = self._params(plan, plan.penalty)
            _put(logits, plan.penalty, penalize(logits[plan.penalty], counts, params))

    def _filter(self, logits: Tensor, plan: SamplingPlan) -> None:
        if plan.min_p is not None:
            params = self._params(plan, plan.min_p)
            _put(logits, plan.min_p, keep_min_p(logits[plan.min_p], params))
        if plan.top is not None:
            params = self._params(plan, plan.top)
            _put(logits, plan.top, keep_top(logits[plan.top], params, plan.max_top_k))

    def _params(self, plan: SamplingPlan, rows: Rows) -> Tensor:
        return self._state.params.index_select(0, plan.slots[rows])


def _put(logits: Tensor, rows: Rows, changed: Tensor) -> None:
    """Writes rows back, unless they were changed where they are."""
    if changed.data_ptr() != logits.data_ptr():
        logits[rows] = changed


def penalize(logits: Tensor, counts: Tensor, params: Tensor) -> Tensor:
    """Repetition over prompt and output, presence and frequency over output only.

    logits float32 [n, vocab]; counts int32 [n, vocab] as in SamplingState; params
    float32 [n, 7].
    """
    repetition = params[:, REPETITION, None]
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts > 0, scaled, logits)
    outputs = counts >> 1
    logits -= params[:, FREQUENCY, None] * outputs
    logits -= params[:, PRESENCE, None] * (outputs > 0)
    return logits


def keep_min_p(logits: Tensor, params: Tensor) -> Tensor:
    """Drops tokens below `min_p` times the likeliest one's probability, in place; [n, vocab]."""
    slack = params[:, TEMPERATURE] * params[:, MIN_P].log()
    limits = logits.amax(dim=-1) + slack
    return logits.masked_fill_(logits < limits[:, None], -torch.inf)


def keep_top(logits: Tensor, params: Tensor, max_top_k: int) -> Tensor:
    """Keeps the `top_k` best tokens, then the fewest of them that hold `top_p` of their mass, in
    place.

    Both come down to "the first m in falling order"; m follows from the sorted values alone, and
    of equal logits the lower id comes first, so the result depends neither on how a device sorts
    nor on the width `max_top_k` (the largest top_k of the rows, host side).
    """
    if max_top_k < logits.shape[1]:
        values = logits.topk(max_top_k, dim=-1).values
    else:
        values = logits.sort(dim=-1, descending=True).values
    top_p = params[:, TOP_P, None]
    inside = torch.arange(values.shape[1], device=values.device) < params[:, TOP_K, None]
    probs = (values / params[:, TEMPERATURE, None]).masked_fill_(~inside, -torch.inf).softmax(-1)
    mass_before = probs.cumsum(-1) - probs
    # Rounding may let the mass reach 1 early, which must not cut rows without top-p.
    kept = (inside & ((mass_before < top_p) | (top_p >= 1.0))).sum(-1, keepdim=True)
    last = values.gather(1, kept - 1)
    above = logits > last
    ties = logits == last
    room = kept - above.sum(-1, keepdim=True)
    keep = above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= room))
    return logits.masked_fill_(~keep, -torch.inf)


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> Logprobs:
    """Log-probabilities under softmax(logits [n, vocab]) of `tokens` [n] and of the best ones."""
    total = logits.logsumexp(dim=-1)
    chosen = logits.gather(1, tokens[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    top = logits.topk(num_top, dim=-1)
    return Logprobs(chosen[:, 0] - total, ranks, top.values - total[:, None], top.indices)
