"""How far a signal lies outside what a model has learned from.

Trees answer anything: beyond their last split they go on saying what the outermost rows said, and rows that
no market makes get an answer as sure as any. So each answer carries a score, and one over the limit is not
given. Figures: docs/learning.md.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeatureRanges", "make_ranges"]

Floats = NDArray[np.float64]

FAR = 5.0
"""Standard deviations, in every direction at once, at which the score reaches 1."""
RIDGE = 0.03
"""Pulled from the correlations towards none: combinations that never varied count, but not without bound."""
CONSTANT, CONSTANT_SPREAD = 1e-6, 0.01
"""A feature that varied by less than the first (a regime's own flag) gets the second as its spread."""
FARTHEST = 1e6
"""Standard deviations counted of one feature, so that no square overflows."""
UNITS = 10_000
"""Correlations are kept as whole ten-thousandths: what a matrix product leaves different is rounded away."""
CHUNK_ROWS = 64
"""Rows x features x features held at once."""


@dataclass(frozen=True, kw_only=True)
class FeatureRanges:
    """Where the features lay, and how they moved together, in the rows that a model learned from.

    Entry i of each is of feature i.
    """

    centre: tuple[float, ...]
    """Mean."""
    spread: tuple[float, ...]
    """Standard deviation, over 0."""
    missing: tuple[float, ...]
    """Share of rows in which the feature was NaN."""
    importance: tuple[float, ...]
    """Share of the booster's total gain; adds to 1."""
    correlation: bytes
    """Of i with j < i, row by row, in ten-thousandths as little-endian int16."""

    def __post_init__(self) -> None:
        f = len(self.centre)
        lengths = {len(self.spread), len(self.missing), len(self.importance)}
        if not f or lengths != {f} or len(self.correlation) != f * (f - 1):
            raise ValueError(f"the ranges of {f} features do not hold one entry of each kind for each")

    def score(self, features: NDArray[np.float32]) -> Floats:
        """(n,) out-of-distribution scores in [0, 1] of features (n, F); the same in a batch and alone.

        ``score = min(1, d2 / (25 F) + absent)``. ``d2`` is the squared Mahalanobis distance from the centre,
        the correlations shrunk by ``RIDGE``: its mean over the learned rows is F or a little less, however
        the features are correlated, and a row 5 standard deviations out in every direction has 25 F. So a
        row over 0.2 is, squared, more than five times as far out as an ordinary one. ``absent`` is the
        importance of the features that are NaN here, each less the share of rows in which it was NaN there
        as well; in ``d2`` they stand at their centre.

        A distance from the centroid, not the box of single ranges: both are classic applicability domains
        (Jaworska, Nikolova-Jeliazkova & Aldenberg, *QSAR applicability domain estimation by projection of
        the training set in descriptor space: a review*, ATLA 33, 2005), but a box neither weighs how far
        outside a row is nor sees values that are common alone and impossible together.
        """
        away = (features - self._centre) * self._scale
        absent = np.isnan(away)
        extra = np.zeros(len(away))
        if absent.any():
            extra = (absent * self._absent_weight).sum(axis=1)
            away[absent] = 0.0
        np.maximum(np.minimum(away, FARTHEST, out=away), -FARTHEST, out=away)
        if len(away) > CHUNK_ROWS:
            chunks = [away[at : at + CHUNK_ROWS] for at in range(0, len(away), CHUNK_ROWS)]
            distance = np.concatenate([self._distance(chunk) for chunk in chunks])
        else:
            distance = self._distance(away)
        score: Floats = np.minimum(distance + extra, 1.0)
        return score

    def _distance(self, away: Floats) -> Floats:
        # Not a matrix product, whose last digits depend on how many rows there are.
        straight = (away[:, None, :] * self._whitening).sum(axis=2)
        squared: Floats = np.square(straight, out=straight).sum(axis=1)
        return squared

    @cached_property
    def _centre(self) -> Floats:
        return np.array(self.centre)

    @cached_property
    def _scale(self) -> Floats:
        scale: Floats = 1 / np.array(self.spread)
        return scale

    @cached_property
    def _absent_weight(self) -> Floats:
        weight: Floats = np.array(self.importance) * (1 - np.array(self.missing))
        return weight

    @cached_property
    def _whitening(self) -> Floats:
        """(F, F) that turns deviations into independent ones, whose squares then add to the score."""
        f = len(self.centre)
        matrix = np.zeros((f, f))
        matrix[np.tril_indices(f, -1)] = np.frombuffer(self.correlation, "<i2") / UNITS
        matrix = (1 - RIDGE) * (matrix + matrix.T) + np.eye(f)
        lower: Floats = np.ascontiguousarray(np.linalg.inv(np.linalg.cholesky(matrix)))
        lower /= FAR * np.sqrt(f)
        return lower

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "centre": list(self.centre),
            "spread": list(self.spread),
            "missing": list(self.missing),
            "importance": list(self.importance),
            "correlation": b64encode(self.correlation).decode("ascii"),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``.

        Raises:
            ValueError: entries of different lengths.
        """
        entries = {name: tuple(value[name]) for name in ("centre", "spread", "missing", "importance")}
        return cls(**entries, correlation=b64decode(value["correlation"], validate=True))


def make_ranges(features: NDArray[np.float32], importance: tuple[float, ...]) -> FeatureRanges:
    """The ranges of features (n, F), n >= 1: of the rows that a model learned from.

    Args:
        features: NaN where a feature is missing.
        importance: (F,), adds to 1.
    """
    values = features.astype(np.float64)
    missing = np.isnan(values)
    known = np.maximum((~missing).sum(axis=0), 1)
    centre = np.where(missing, 0.0, values).sum(axis=0) / known
    away = np.where(missing, 0.0, values - centre)
    spread = np.sqrt((away**2).sum(axis=0) / known)
    spread = np.where(spread < CONSTANT, CONSTANT_SPREAD, spread)
    away /= spread
    correlation = np.round(UNITS * (away.T @ away) / len(away)).astype("<i2")
    return FeatureRanges(
        centre=_rounded(centre),
        spread=_rounded(spread),
        missing=_rounded(missing.mean(axis=0)),
        importance=importance,
        correlation=correlation[np.tril_indices(len(centre), -1)].tobytes(),
    )


def _rounded(values: Floats) -> tuple[float, ...]:
    """To six digits: more say nothing, and a model's JSON is read with every cold model."""
    return tuple(float(f"{value:.6g}") for value in values)
