"""How far the features have moved: Kolmogorov-Smirnov, population stability index.

NaN is a value like any other here, the largest: a feature that goes missing has drifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "PSI_FLOOR",
    "FeatureReference",
    "Reference",
    "compare",
    "ks_statistic",
    "make_reference",
    "population_stability_index",
]

CONFIDENCE: Final = "(confidence)"
"""Name of the model's own answers where they are compared like a feature."""
MAX_SAMPLE: Final = 4096
BINS: Final = 10
STRIDE: Final = 32
PSI_FLOOR: Final = 1e-4
"""Least share of a bin in the index, so that an empty bin gives a large number and not infinity."""


Floats = NDArray[np.float64]


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
    """Rows that the features are from; a sample keeps at most ``MAX_SAMPLE``, evenly spaced in rank."""
    confidence: FeatureReference | None = None
    """What the model said of rows that its trees had not seen; importance 1."""


def make_reference(
    features: NDArray[np.float32],
    names: tuple[str, ...],
    importance: Floats,
    *,
    confidence: Floats | None = None,
    max_sample: int | None = MAX_SAMPLE,
) -> Reference:
    """Keep what later checks need of ``features`` (n, F).

    Args:
        features: (n, F), n >= 1.
        names: F column names.
        importance: (F,), adds to 1.
        confidence: (c,) what the model says of rows its trees have not seen, c >= 1.
        max_sample: values kept of each; None keeps all.
    """
    made = [
        _feature(name, values, float(share), max_sample)
        for name, share, values in zip(names, importance, _ordered(features), strict=True)
    ]
    said = None
    if confidence is not None:
        said = _feature(CONFIDENCE, np.sort(confidence.astype(np.float32)), 1.0, max_sample)
    return Reference(tuple(made), len(features), said)


def _feature(
    name: str, ordered: NDArray[np.float32], importance: float, max_sample: int | None
) -> FeatureReference:
    n = len(ordered)
    kept = np.linspace(0, n - 1, min(n, max_sample or n)).round().astype(np.intp)
    quantiles = ordered[np.ceil(np.arange(1, BINS) * n / BINS).astype(np.intp) - 1]
    edges = np.unique(quantiles[~np.isnan(quantiles)])
    # The largest value is no edge: nothing lies above it, so its bin would be empty for ever.
    edges = edges[edges != ordered[-1]]
    return FeatureReference(name, ordered[kept], edges, _shares(ordered, edges), importance)


def ks_statistic(reference: NDArray[np.floating], current: NDArray[np.floating]) -> float:
    """Two-sample Kolmogorov-Smirnov statistic of two ascending samples (NaN last), in [0, 1].

    The largest distance between the two empirical distribution functions, as ``scipy.stats.ks_2samp``, with
    the reference looked up at the points of ``current`` only, and at few of those.

    Raises:
        ValueError: a sample is empty.
    """
    n = len(current)
    if len(reference) == 0 or n == 0:
        raise ValueError("a Kolmogorov-Smirnov statistic needs two samples; one is empty")
    # Between two points of ``current`` its function is flat and the reference's rises: the largest distance
    # is at such a point, on one of its sides.
    place = np.append(np.arange(0, n - 1, STRIDE), n - 1)
    upto, below = _shares_at(reference, current[place])
    best = max(((place + 1) / n - upto).max(), (below - place / n).max())
    # Both functions only rise, so what lies inside a stretch is bounded by the reference at its ends.
    bound = np.maximum(place[1:] / n - upto[:-1], below[1:] - (place[:-1] + 1) / n)
    inside = (place[:-1][bound > best, None] + np.arange(1, STRIDE)).ravel()
    inside = inside[inside < n]
    if len(inside):
        upto, below = _shares_at(reference, current[inside])
        best = max(best, ((inside + 1) / n - upto).max(), (below - inside / n).max())
    return float(best)


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
    return _index(reference, np.sort(current))


def compare(reference: Reference, current: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """KS statistic (F,) and stability index (F,) of every feature of ``current`` (m, F), m >= 1.

    Raises:
        ValueError: ``current`` is empty.
    """
    columns = list(zip(reference.features, _ordered(current), strict=True))
    ks = np.array([ks_statistic(feature.sample, values) for feature, values in columns])
    return ks, np.array([_index(feature, values) for feature, values in columns])


def _index(feature: FeatureReference, ordered: NDArray[np.float32]) -> float:
    now = np.maximum(_shares(ordered, feature.edges), PSI_FLOOR)
    was = np.maximum(feature.shares, PSI_FLOOR)
    return float(((now - was) * np.log(now / was)).sum())


def _shares_at(reference: NDArray[np.floating], values: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Share of the reference that is at most, and that is below, each value."""
    upto = np.searchsorted(reference, values, side="right")
    below = np.searchsorted(reference, values, side="left")
    return upto / len(reference), below / len(reference)


def _ordered(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(F, n): each column of (n, F) in one piece, ascending, NaN last."""
    columns = np.array(features.T, order="C")
    columns.sort(axis=1)
    return columns


def _shares(ordered: NDArray[np.float32], edges: NDArray[np.float32]) -> Floats:
    below = np.searchsorted(ordered, edges, side="right")
    return np.diff(below, prepend=0, append=len(ordered)) / len(ordered)
