"""Sampling where several ranks need the tokens."""

from __future__ import annotations

from torch import Tensor

from baton.engine.parallel.group import ParallelGroup
from baton.engine.sampler import Sampled, Sampler
from baton.engine.sampling_state import SamplingPlan


class SharedSampler:
    """Rank 0 samples and tells the others: they need no sampling state, and cannot disagree."""

    def __init__(self, sampler: Sampler, group: ParallelGroup) -> None:
        self._sampler = sampler
        self._group = group

    def sample(self, logits: Tensor, plan: SamplingPlan) -> Sampled:
        """As Sampler.sample; ranks other than 0 get the tokens alone."""
        if self._group.shards.rank == 0:
            sampled = self._sampler.sample(logits, plan)
            self._group.broadcast(sampled.tokens)
            return sampled
        tokens = plan.slots.new_empty(logits.shape[0])
        self._group.broadcast(tokens)
        return Sampled(tokens, None)
