"""How far a signal's features lie outside what a model has learned from.

Trees answer anything: beyond the last split they go on saying what the outermost rows said. So each answer
carries a score, and one over the limit is not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeatureRanges", "make_ranges"]

Floats = NDArray[np.float64]

TAIL = 0.001
"""Share of the learned rows that lie below a range, and share above it: one bad row does not widen it."""


@dataclass(frozen=True, kw_only=True)
class FeatureRanges:
    """Where each feature lay in the rows that a model learned from; entry i is of feature i."""

    low: tuple[float, ...]
    """Quantile ``TAIL`` of the values that are there; 0 where a feature never was."""
    high: tuple[float, ...]
    """Quantile 1 - ``TAIL``."""
    missing: tuple[float, ...]
    """Share of rows in which the feature was NaN."""
    importance: tuple[float, ...]
    """Share of the booster's total gain; adds to 1."""

    def __post_init__(self) -> None:
        if len({len(entries) for entries in asdict(self).values()}) != 1:
            raise ValueError("ranges need one low, high, missing and importance for each feature")

    def score(self, features: NDArray[np.float32]) -> Floats:
        """(n,) scores in [0, 1] of features (n, F)."""
        outside = (features < self._low) | (features > self._high) | np.isnan(features)
        return outside @ self._importance

    @cached_property
    def _low(self) -> Floats:
        return np.array(self.low)

    @cached_property
    def _high(self) -> Floats:
        return np.array(self.high)

    @cached_property
    def _importance(self) -> Floats:
        return np.array(self.importance)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(entries) for name, entries in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``.

        Raises:
            ValueError: entries of different lengths.
        """
        return cls(**{name: tuple(entries) for name, entries in value.items()})


def make_ranges(features: NDArray[np.float32], importance: tuple[float, ...]) -> FeatureRanges:
    """Ranges of features (n, F), n >= 1: those of the rows that a model learned from.

    Args:
        features: NaN where a feature is missing.
        importance: (F,), adds to 1.
    """
    missing = np.isnan(features)
    known = np.where(missing.all(axis=0), np.float32(0), features)
    low, high = np.nanquantile(known, [TAIL, 1 - TAIL], axis=0)
    return FeatureRanges(
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        missing=tuple(missing.mean(axis=0).tolist()),
        importance=importance,
    )
