"""How far the features have moved: Kolmogorov-Smirnov, population stability index, one score.

NaN is a value like any other here, the largest: a feature that goes missing has drifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PSI_FLOOR",
    "FeatureReference",
    "Reference",
    "drift_score",
    "ks_statistic",
    "make_reference",
    "population_stability_index",
]

MAX_SAMPLE = 4096
BINS = 10
PSI_FLOOR = 1e-4
"""Least share of a bin in the index, so that an empty bin gives a large number and not infinity."""


@dataclass(frozen=True, slots=True)
class FeatureReference:
    """What one feature looked like when its model was trained."""

    name: str
    sample: NDArray[np.float32]
    """(m,), ascending, m <= ``MAX_SAMPLE``; NaN last."""
    edges: NDArray[np.float32]
    """(b - 1,) ascending and distinct: bin i holds ``edges[i - 1] < x <= edges[i]``, NaN in the last."""
    shares: NDArray[np.float64]
    """(b,) share of the reference in each bin."""
    importance: float
    """Share of the booster's total gain; those of all features add to 1."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The sample that later data is compared with: a feature's sample, bins and importance, by column."""

    features: tuple[FeatureReference, ...]
    rows: int
    """Rows it was made from; a sample keeps at most ``MAX_SAMPLE``, evenly spaced in rank."""


def make_reference(
    features: NDArray[np.float32], names: tuple[str, ...], importance: NDArray[np.float64]
) -> Reference:
    """Keep what later checks need of ``features`` (n, F).

    Args:
        features: (n, F), n >= 1.
        names: F column names.
        importance: (F,), adds to 1.
    """
    n = len(features)
    kept = np.linspace(0, n - 1, min(n, MAX_SAMPLE)).round().astype(np.intp)
    ranks = np.ceil(np.arange(1, BINS) * n / BINS).astype(np.intp) - 1
    made = []
    for column, (name, values) in enumerate(zip(names, _ordered(features), strict=True)):
        quantiles = values[ranks]
        edges = np.unique(quantiles[~np.isnan(quantiles)])
        # The largest value is no edge: nothing lies above it, so its bin would be empty for ever.
        edges = edges[edges != values[-1]]
        shares = _shares(values, edges)
        made.append(FeatureReference(name, values[kept], edges, shares, float(importance[column])))
    return Reference(tuple(made), n)


def ks_statistic(reference: NDArray[np.floating], current: NDArray[np.floating]) -> float:
    """Two-sample Kolmogorov-Smirnov statistic of two ascending samples (NaN last), in [0, 1].

    The largest distance between the two empirical distribution functions, as ``scipy.stats.ks_2samp``.

    Raises:
        ValueError: a sample is empty.
    """
    if len(reference) == 0 or len(current) == 0:
        raise ValueError("a Kolmogorov-Smirnov statistic needs two samples; one is empty")
    # Both functions are steps that change only at points of a sample, so the largest distance is at one.
    distances = []
    for one, other in ((reference, current), (current, reference)):
        upto = np.searchsorted(other, one, side="right") / len(other)
        own = np.searchsorted(one, one, side="right") / len(one)
        distances.append(np.abs(upto - own).max())
    return float(max(distances))


def population_stability_index(reference: FeatureReference, current: NDArray[np.float32]) -> float:
    """Sum over the reference's bins of (c - r) ln(c / r), shares floored at ``PSI_FLOOR``; at least 0.

    Over 0.25 is commonly read as a large shift (Siddiqi, *Credit Risk Scorecards*, 2006).

    Args:
        reference: bins and shares.
        current: (n,), any order, n >= 1.

    Raises:
        ValueError: ``current`` is empty.
    """
    if len(current) == 0:
        raise ValueError("a population stability index needs a current sample; it is empty")
    now = np.maximum(_shares(np.sort(current), reference.edges), PSI_FLOOR)
    was = np.maximum(reference.shares, PSI_FLOOR)
    return float(((now - was) * np.log(now / was)).sum())


def drift_score(reference: Reference, current: NDArray[np.float32]) -> float | None:
    """Importance-weighted mean of the features' KS statistics, in [0, 1]; None where ``current`` has no row.

    The one number held against ``max_feature_drift_ks`` and the severities: a feature counts as much as the
    model leans on it (its share of the booster's total gain).

    Args:
        reference: from the model's training rows.
        current: (n, F), columns as in ``reference``.
    """
    if len(current) == 0:
        return None
    return float(
        sum(
            feature.importance * ks_statistic(feature.sample, values)
            for feature, values in zip(reference.features, _ordered(current), strict=True)
            if feature.importance > 0
        )
    )


def _ordered(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(F, n): each column of (n, F) in one piece, ascending, NaN last."""
    columns = np.array(features.T, order="C")
    columns.sort(axis=1)
    return columns


def _shares(ordered: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.float64]:
    below = np.searchsorted(ordered, edges, side="right")
    return np.diff(below, prepend=0, append=len(ordered)) / len(ordered)
