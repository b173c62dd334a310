"""Moving averages over recent steps: what a worker tells the router about its own speed."""

from __future__ import annotations

from baton.protos.types import StepOutput

# About the last twenty steps: quick to follow a change of load, slow enough to ride out one step.
_WEIGHT = 0.1


class StepMeter:
    """Rates measured over steps; 0.0 until something was measured."""

    def __init__(self) -> None:
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0
        self.decode_step_s = 0.0
        self.itl_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Over steps that computed part of a prompt, beside their decodes.

        A ratio of averages, so that a step with the last few tokens of a prompt weighs little.
        """
        return self._prefill_tokens / self._prefill_s if self._prefill_s > 0 else 0.0

    def observe(self, output: StepOutput) -> None:
        if output.num_decode_tokens:
            weight = _WEIGHT if self.itl_s > 0 else 1.0
            self.itl_s += weight * (output.duration_s - self.itl_s)
        if output.num_prefill_tokens:
            weight = _WEIGHT if self._prefill_s > 0 else 1.0
            self._prefill_tokens += weight * (output.num_prefill_tokens - self._prefill_tokens)
            self._prefill_s += weight * (output.duration_s - self._prefill_s)
        elif output.num_decode_tokens:
            weight = _WEIGHT if self.decode_step_s > 0 else 1.0
            self.decode_step_s += weight * (output.duration_s - self.decode_step_s)
