"""Many decode steps in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Run:
    """Steps of decodes only, or one that prompts share: the i-th takes first + i * growth."""

    start_s: float
    num_steps: int
    first_s: float
    growth_s: float
    end_s: float = 0.0

    def elapsed_s(self, num_steps: int) -> float:
        return num_steps * self.first_s + self.growth_s * num_steps * (num_steps - 1) / 2

    def steps_by(self, elapsed_s: float) -> int:
        """Steps that are over after `elapsed_s`."""
        if elapsed_s <= 0:
            return 0
        if self.growth_s <= 0:
            return int(elapsed_s / self.first_s + 1e-9)
        half = self.first_s - self.growth_s / 2
        root = math.sqrt(half * half + 2 * self.growth_s * elapsed_s)
        return int((root - half) / self.growth_s + 1e-9)

    def advance(self, num_steps: int) -> None:
        """The first `num_steps` are over and counted."""
        self.start_s += self.elapsed_s(num_steps)
        self.first_s += num_steps * self.growth_s
        self.num_steps -= num_steps
