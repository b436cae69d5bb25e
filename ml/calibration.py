"""From a booster's margin to a probability, a threshold and an expected return: what is a key's own.

All three are made on the key's *calibrate* rows, which no tree has seen, and are judged on later rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from ml.config import GateConfig

__all__ = [
    "Calibration",
    "IsotonicCalibration",
    "ReturnBins",
    "SigmoidCalibration",
    "Threshold",
    "calibration_from_json",
    "choose_threshold",
    "fit_calibration",
    "fit_return_bins",
]

Rule = Literal["gates with margin", "gates", "compromise"]
Floats = NDArray[np.float64]

LEAST_CONFIDENCE = 0.001
"""Confidences stay inside [this, 1 - this]: no few hundred rows can show a certainty."""

SLOPE, SLOPE_SPREAD = 0.6, 0.1
OFFSET_SPREAD = 0.05
"""Prior means and standard deviations of a sigmoid: distances from the base rate's log-odds are kept to 0.6,
for trees are surer of themselves on the rows they grew on than later ones allow (docs/learning.md)."""

RETURN_BINS = 10
RETURN_PRIOR_ROWS = 100.0


@dataclass(frozen=True, slots=True)
class SigmoidCalibration:
    """``confidence = 1 / (1 + exp(-(slope * margin + offset)))`` (Platt, 1999)."""

    slope: float
    """At least 0: calibration never turns the booster's order round."""
    offset: float

    def confidence(self, margin: Floats) -> Floats:
        """(n,) probabilities of (n,) margins (log-odds)."""
        confidence = expit(self.slope * margin + self.offset)
        # np.clip takes twice as long for one row.
        return np.minimum(np.maximum(confidence, LEAST_CONFIDENCE), 1 - LEAST_CONFIDENCE)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": "sigmoid", "slope": self.slope, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class IsotonicCalibration:
    """Straight lines between the corners of an isotonic regression (Zadrozny & Elkan, 2002)."""

    margins: tuple[float, ...]
    """Ascending."""
    confidences: tuple[float, ...]

    def confidence(self, margin: Floats) -> Floats:
        """(n,) probabilities of (n,) margins (log-odds); flat beyond the corners."""
        return np.interp(margin, self.margins, self.confidences)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": "isotonic", "margins": list(self.margins), "confidences": list(self.confidences)}


Calibration = SigmoidCalibration | IsotonicCalibration


def calibration_from_json(value: dict[str, Any]) -> Calibration:
    """The inverse of ``to_json``.

    Raises:
        ValueError: an unknown kind.
    """
    if value["kind"] == "sigmoid":
        return SigmoidCalibration(value["slope"], value["offset"])
    if value["kind"] == "isotonic":
        return IsotonicCalibration(tuple(value["margins"]), tuple(value["confidences"]))
    raise ValueError(f"calibration kind {value['kind']!r}; expected sigmoid or isotonic")


def fit_calibration(
    kind: Literal["sigmoid", "isotonic"], margin: Floats, label: Floats, weight: Floats, *, base_rate: float
) -> Calibration:
    """Fit a calibration.

    Args:
        kind: sigmoid leans on a prior, and so needs fewer rows; isotonic takes any rising shape.
        margin: (n,) log-odds of the calibrate rows.
        label: (n,) 0 and 1.
        weight: (n,) uniqueness: what overlaps counts once.
        base_rate: share of hits in all that is known of the key, in (0, 1).
    """
    if kind == "isotonic":
        return _fit_isotonic(margin, label, weight)
    return _fit_sigmoid(margin, label, weight, float(logit(base_rate)))


def _fit_sigmoid(margin: Floats, label: Floats, weight: Floats, base: float) -> SigmoidCalibration:
    """Maximum a posteriori of log-odds = base + slope * (margin - base) + offset.

    A few hundred overlapping rows may bend the prior; they cannot replace it.
    """
    distance = margin - base

    def loss(at: Floats) -> tuple[float, Floats]:
        slope, offset = at
        odds = base + slope * distance + offset
        error = weight * (expit(odds) - label)
        pull = np.array([(slope - SLOPE) / SLOPE_SPREAD**2, offset / OFFSET_SPREAD**2])
        # Sums by NumPy: a product of matrices gives other last digits on another kind of processor.
        value = np.sum(weight * (np.logaddexp(0, odds) - label * odds))
        value += ((slope - SLOPE) * pull[0] + offset * pull[1]) / 2
        return float(value), pull + np.array([np.sum(error * distance), error.sum()])

    found = minimize(loss, x0=[SLOPE, 0.0], jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    # What the optimiser's own matrix products leave different is rounded away.
    slope, offset = (round(float(value), 6) for value in found.x)
    return SigmoidCalibration(slope, round(base * (1 - slope) + offset, 6))


def _fit_isotonic(margin: Floats, label: Floats, weight: Floats) -> IsotonicCalibration:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=LEAST_CONFIDENCE, y_max=1 - LEAST_CONFIDENCE)
    model.fit(margin, label, sample_weight=weight)
    return IsotonicCalibration(tuple(map(float, model.X_thresholds_)), tuple(map(float, model.y_thresholds_)))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where a confidence becomes a positive (``confidence >= value``), and what that gave when chosen."""

    value: float
    rule: Rule
    """What it was chosen for: F1 within the gates and the margin; within the gates alone; or, where no
    threshold meets them, coming nearest."""
    f1: float
    precision: float
    recall: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def choose_threshold(confidence: Floats, label: Floats, gates: GateConfig, *, margin: float) -> Threshold:
    """The threshold with the highest F1 among those that meet the precision and recall gates.

    Where none does, the one whose worst gate is missed by the smallest ratio.

    Args:
        confidence: (n,) of the calibrate rows.
        label: (n,) 0 and 1, at least one of them 1.
        gates: ``min_precision``, ``min_recall`` and ``min_f1`` are read.
        margin: first asked for on top of precision and recall, for what is chosen on few rows shrinks later.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    last_of_ties = np.r_[ordered[1:] != ordered[:-1], True]
    hits = np.cumsum(label[order])[last_of_ties]
    positives = np.flatnonzero(last_of_ties) + 1
    values = ordered[last_of_ties]
    precision = hits / positives
    recall = hits / label.sum()
    f1 = 2 * hits / (positives + label.sum())

    def chosen(at: int, rule: Rule) -> Threshold:
        return Threshold(float(values[at]), rule, float(f1[at]), float(precision[at]), float(recall[at]))

    attempts: tuple[tuple[float, Rule], ...] = ((margin, "gates with margin"), (0.0, "gates"))
    for extra, rule in attempts:
        meets = (precision >= gates.min_precision + extra) & (recall >= gates.min_recall + extra)
        if meets.any():
            return chosen(int(np.argmax(np.where(meets, f1, -1))), rule)
    limits = (gates.min_precision, gates.min_recall, gates.min_f1)
    reached = np.min(np.stack([precision, recall, f1]) / np.maximum(limits, 1e-9)[:, None], axis=0)
    return chosen(int(np.argmax(reached)), "compromise")


@dataclass(frozen=True, slots=True)
class ReturnBins:
    """Expected net return by confidence: entry i where ``edges[i - 1] <= confidence < edges[i]``."""

    edges: tuple[float, ...]
    """Ascending, one fewer than there are bins."""
    net_return_atr: tuple[float, ...]
    """Non-decreasing, in ATR units, after fees and slippage."""
    rows: tuple[int, ...]

    def expected(self, confidence: Floats) -> Floats:
        """(n,) expected net returns of (n,) confidences."""
        return np.asarray(self.net_return_atr)[np.searchsorted(self.edges, confidence, side="right")]

    @property
    def has_edge(self) -> bool:
        """Whether any confidence is expected to earn more than it costs."""
        return max(self.net_return_atr) > 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {key: list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(**{key: tuple(entries) for key, entries in value.items()})


def fit_return_bins(confidence: Floats, net_return_atr: Floats, weight: Floats) -> ReturnBins:
    """Mean net return of ``RETURN_BINS`` equally filled bins, shrunk to the overall mean and made monotone.

    A bin's mean counts as much as its weight, against ``RETURN_PRIOR_ROWS`` of the overall mean: ten lucky
    rows do not make an edge. Weights are the rows' uniqueness, so overlapping outcomes count once.

    Args:
        confidence: (n,) of the calibrate rows, n >= 1.
        net_return_atr: (n,) after costs.
        weight: (n,) over 0.
    """
    # Edges are confidences that occurred, each over the least, so no bin is empty.
    quantiles = np.quantile(confidence, np.arange(1, RETURN_BINS) / RETURN_BINS, method="higher")
    edges = np.unique(quantiles[quantiles > confidence.min()])
    index = np.searchsorted(edges, confidence, side="right")
    weights = np.bincount(index, weight, minlength=len(edges) + 1)
    totals = np.bincount(index, weight * net_return_atr, minlength=len(edges) + 1)
    overall = float(totals.sum() / weights.sum())
    shrunk = (totals + RETURN_PRIOR_ROWS * overall) / (weights + RETURN_PRIOR_ROWS)
    monotone = isotonic_regression(shrunk, weights=weights).x
    rows = np.bincount(index, minlength=len(edges) + 1)
    return ReturnBins(tuple(map(float, edges)), tuple(map(float, monotone)), tuple(map(int, rows)))
