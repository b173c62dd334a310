"""What a worker tells the router about its own speed: averages of recent steps, and samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from baton.engine.batch import ScheduledRow
from baton.protos.types import StepOutput, StepSample

# About the last twenty steps: quick to follow a change of load, slow enough to ride out one step.
_WEIGHT = 0.1
# Steps with and without prompt tokens are each sampled at most this often: routers learn from ten
# of them a second as well as from a hundred, and counting a step's KV costs a look at every row.
_SAMPLE_EVERY_S = 0.1
_MAX_SAMPLES = 32


class StepMeter:
    """Rates measured over steps; 0.0 until something was measured."""

    def __init__(self) -> None:
        self._samples: deque[StepSample] = deque(maxlen=_MAX_SAMPLES)
        # When a step without, and one with, prompt tokens was sampled last.
        self._sampled_s = [-_SAMPLE_EVERY_S, -_SAMPLE_EVERY_S]
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

    def take_samples(self) -> tuple[StepSample, ...]:
        """Steps sampled since the last call."""
        samples = tuple(self._samples)
        self._samples.clear()
        return samples

    def observe(self, rows: Sequence[ScheduledRow], output: StepOutput, now_s: float) -> None:
        """Takes in a step that computed `rows`, and ended at `now_s`."""
        self._average(output)
        kind = bool(output.num_prefill_tokens)
        if rows and now_s - self._sampled_s[kind] >= _SAMPLE_EVERY_S:
            self._sampled_s[kind] = now_s
            self._samples.append(_sample(rows, output))

    def _average(self, output: StepOutput) -> None:
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


def _sample(rows: Sequence[ScheduledRow], output: StepOutput) -> StepSample:
    num_pairs = kv_tokens = 0
    for row in rows:
        if row.decodes:
            kv_tokens += row.end
        else:
            num_pairs += row.num_new_tokens * (2 * row.end - row.num_new_tokens) // 2
    return StepSample(
        output.num_prefill_tokens,
        num_pairs,
        output.num_decode_tokens,
        kv_tokens,
        output.duration_s,
    )
