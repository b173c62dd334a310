"""A robust recursive fit of one linear time model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# Times repeat within a few percent at best, and first measurements are no better than guesses.
_LEAST_NOISE: Final = 0.03
_FIRST_NOISE: Final = 0.5
# Residuals count in full up to this many times the usual one (Huber 1964) ...
_HUBER: Final = 2.0
# ... and not at all beyond this many, unless so many come in a row: then the world has changed.
_OUTLIER: Final = 12.0
_MAX_REJECTED: Final = 8
# Variance that every sample adds, relative to the coefficient: old samples fade over hundreds.
_DRIFT: Final = 1e-4
# How far off a prior may be, in multiples of itself, and the bounds of what is believed.
PRIOR_SPREAD: Final = 30.0
_LARGEST: Final = 1e5
_ERROR_WEIGHT: Final = 0.02


class RobustFit:
    """Coefficients of `seconds = sum(coefficient * feature)`, one sample at a time.

    A Kalman filter whose state drifts (Kalman 1960), on errors relative to the time itself: a slow
    step tells no more than a fast one. Coefficients stay between 0 and 100,000 times their prior;
    one that meets a bound hands its share to those that it is correlated with.
    """

    __slots__ = (
        "_covariance",
        "_noise",
        "_rejected",
        "_scale",
        "_spread",
        "_values",
        "error",
        "num_samples",
    )

    def __init__(self, prior: Sequence[float], *, spread: float = PRIOR_SPREAD) -> None:
        """prior: positive. spread: how far off it may be, in multiples of itself."""
        self._scale = [float(value) for value in prior]
        self._values = [1.0] * len(prior)
        self._spread = spread * spread
        self._covariance = [
            [self._spread if row == column else 0.0 for column in range(len(prior))]
            for row in range(len(prior))
        ]
        self._noise = _FIRST_NOISE
        self._rejected = 0
        self.num_samples = 0
        # Mean relative error of predictions made before each sample was learned from.
        self.error = 0.0

    @property
    def coefficients(self) -> list[float]:
        return [value * scale for value, scale in zip(self._values, self._scale, strict=True)]

    def update(self, features: Sequence[float], seconds: float) -> None:
        """Learns from one measurement. What cannot be one (no time, not finite) is ignored."""
        if not math.isfinite(seconds) or seconds <= 0.0:
            return
        scaled = [value * scale for value, scale in zip(features, self._scale, strict=True)]
        predicted = sum(a * b for a, b in zip(scaled, self._values, strict=True))
        unit = 1.0 / max(predicted, seconds)
        residual = (seconds - predicted) * unit
        self._count(abs(seconds - predicted) / seconds)
        weight = self._weight(abs(residual))
        if weight:
            self._correct([value * unit for value in scaled], residual, weight)
            self._bound()

    def _count(self, error: float) -> None:
        self.num_samples += 1
        weight = max(_ERROR_WEIGHT, 1.0 / self.num_samples)
        self.error += weight * (min(error, 1.0) - self.error)

    def _weight(self, size: float) -> float:
        ratio = size / self._noise
        if ratio > _OUTLIER and self._rejected < _MAX_REJECTED:
            self._rejected += 1
            return 0.0
        if self._rejected >= _MAX_REJECTED:
            self._restart()
            ratio = size / self._noise
        self._rejected = 0
        weight = min(1.0, _HUBER / ratio) if ratio else 1.0
        self._noise += 0.05 * (max(size * weight, _LEAST_NOISE) - self._noise)
        return weight

    def _restart(self) -> None:
        """Believes what it knows less, so that the next samples move it quickly."""
        self._noise = _FIRST_NOISE
        for index, row in enumerate(self._covariance):
            row[index] = max(row[index], min(self._spread, self._values[index] ** 2))

    def _correct(self, features: list[float], residual: float, weight: float) -> None:
        covariance, values = self._covariance, self._values
        for index, row in enumerate(covariance):
            row[index] = min(row[index] + _DRIFT * max(values[index], 0.01) ** 2, self._spread)
        projected = [sum(a * b for a, b in zip(row, features, strict=True)) for row in covariance]
        expected = sum(a * b for a, b in zip(features, projected, strict=True))
        total = expected + self._noise * self._noise / weight
        for index, gain in enumerate(projected):
            gain /= total
            values[index] += gain * residual
            row = covariance[index]
            for other, value in enumerate(projected):
                row[other] -= gain * value

    def _bound(self) -> None:
        values, covariance = self._values, self._covariance
        for index, value in enumerate(values):
            bounded = min(max(value, 0.0), _LARGEST)
            variance = covariance[index][index]
            if bounded == value or variance <= 0.0:
                continue
            # The mean of the others, given that this one is at its bound.
            shift = (bounded - value) / variance
            for other in range(len(values)):
                values[other] += covariance[other][index] * shift
        for index, value in enumerate(values):
            values[index] = min(max(value, 0.0), _LARGEST)
