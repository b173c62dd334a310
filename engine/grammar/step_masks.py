"""The runner's collaborator: which rows of a step want masks, and when they can be filled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from baton.engine.batch import RunningStep, ScheduledRow
from baton.engine.grammar.constraint import Constraint
from baton.engine.grammar.masks import MaskFiller, PendingMasks, TokenMasks
from baton.engine.grammar.statistics import MaskStatistics
from baton.engine.request import Request


class StepMasks:
    """Four hooks of a launch: `begin` before the model is launched, `finish` before sampling,
    `launched` after; rows enter and leave. A batch without constraints costs a comparison.

    Masks that depend on a token which the step before is still sampling wait for that step in
    `finish`, when this one's model is on the device already: so the device never idles for them.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._filler = MaskFiller(vocab_size, device)
        self._device = device
        self._num_constrained = 0
        # Of the launch under way: its constraints by sampled row, and those not filled yet.
        self._rows: list[tuple[int, Constraint]] = []
        self._awaited: list[Constraint] = []
        self._pending: PendingMasks | None = None
        self._last: tuple[RunningStep, dict[Constraint, int]] | None = None

    def add_row(self, request: Request) -> None:
        self._num_constrained += request.constraint is not None

    def remove_row(self, request: Request) -> None:
        self._num_constrained -= request.constraint is not None

    def begin(self, rows: Sequence[ScheduledRow], sampling: Iterable[int]) -> None:
        """Starts to fill the masks of the rows `sampling`, if all they depend on is known."""
        self._rows, self._awaited, self._pending = [], [], None
        if not self._num_constrained:
            return
        for index, row in enumerate(sampling):
            request = rows[row].request
            constraint = request.constraint
            if constraint is not None:
                self._rows.append((index, constraint))
                if request.num_pending:
                    self._awaited.append(constraint)
        if not self._awaited:
            self._pending = self._filler.start(self._rows)

    def finish(self) -> TokenMasks | None:
        """The masks, on their way to the device."""
        if self._awaited:
            if self._last is None:
                raise AssertionError("a token is pending, but no step samples it")
            step, indices = self._last
            sampled = step.wait().sampled
            for constraint in self._awaited:
                constraint.foresee(sampled[indices[constraint]])
            self._pending = self._filler.start(self._rows)
        return None if self._pending is None else self._pending.wait(self._device)

    def launched(self, step: RunningStep) -> None:
        """`step` samples what `begin` was told of."""
        self._last = (step, {c: index for index, c in self._rows}) if self._rows else None

    def statistics(self) -> MaskStatistics:
        return self._filler.statistics()

    def close(self) -> None:
        self._filler.close()
