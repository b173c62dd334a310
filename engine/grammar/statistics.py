"""What an engine tells of its grammars, for metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskStatistics:
    """Since the engine was built: masks that grammars filled, and the seconds that took on the
    filling thread and its helpers, in wall time."""

    num_filled: int = 0
    fill_s: float = 0.0

    @property
    def fill_s_per_mask(self) -> float:
        return self.fill_s / self.num_filled if self.num_filled else 0.0
