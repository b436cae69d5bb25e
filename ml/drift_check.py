"""One check of a champion's features, or of its confidence: current rows, the reference and the null."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.alarms import BUDGET_SHARES, DriftCheck, DriftKind, FeatureDrift, SeverityLimits, drift_score
from ml.drift import Reference, compare
from ml.drift_null import FeatureNull

__all__ = ["FAMILY_ALPHA", "LEAST_LEVEL", "alarm_level", "check_confidence", "check_features"]

FAMILY_ALPHA: Final = 0.05
"""A feature is called drifted at most so often, over all features together, where nothing drifts."""
LEAST_LEVEL: Final = 0.1
"""A tenth of its usual range beyond the ordinary is no drift of any feature, whatever the budget."""


def check_features(
    reference: Reference,
    null: FeatureNull,
    current: NDArray[np.float32],
    limits: SeverityLimits,
    *,
    budget_per_month: float,
) -> DriftCheck:
    """Compare features (m, F), m >= 1, with what the model learned from.

    Args:
        reference: the champion's.
        null: the champion's, of its features.
        current: columns as in the reference, any order of rows. The null is of ``null.window_rows`` rows:
            statistics of fewer are scaled to it, those of more are lower where nothing drifts.
        limits: ``ks`` and ``psi`` decide, with the p-value, which features are called drifted.
        budget_per_month: a key's false retrainings of all kinds together.

    Raises:
        ValueError: ``current`` is empty, or has other columns.
    """
    return _check("features", reference, null, current, limits, budget_per_month)


def check_confidence(
    reference: Reference,
    null: FeatureNull,
    confidence: NDArray[np.float64],
    limits: SeverityLimits,
    *,
    budget_per_month: float,
) -> DriftCheck:
    """Compare what the model says of current rows (m,) with what it said of rows its trees had not seen.

    Args:
        reference: the champion's; its ``confidence`` is read.
        null: the champion's, of its confidence as one feature.
        confidence: m >= 1.
        limits: as for features.
        budget_per_month: as for features.

    Raises:
        ValueError: ``confidence`` is empty, or the reference has none.
    """
    if reference.confidence is None:
        raise ValueError("this reference holds no confidence to compare with")
    said = Reference((reference.confidence,), len(reference.confidence.sample))
    current = confidence.astype(np.float32)[:, None]
    return _check("scores", said, null, current, limits, budget_per_month)


def alarm_level(kind: DriftKind, null: FeatureNull, budget_per_month: float) -> float:
    """The statistic at which the kind's share of a key's false retrainings is spent."""
    return max(LEAST_LEVEL, null.levels.at(budget_per_month * BUDGET_SHARES[kind]))


def _check(
    kind: DriftKind,
    reference: Reference,
    null: FeatureNull,
    current: NDArray[np.float32],
    limits: SeverityLimits,
    budget: float,
) -> DriftCheck:
    ks, psi = compare(reference, current)
    statistic = float(null.excess.statistic(*_at_window(null, ks, psi, len(current))))
    level = alarm_level(kind, null, budget)
    features = _features(reference, null, ks, psi, limits, len(current))
    return DriftCheck(
        kind=kind,
        score=drift_score(statistic, level),
        p_value=null.p_value(statistic),
        reference_rows=reference.rows,
        current_rows=len(current),
        statistic=statistic,
        level=level,
        features=features,
        details={
            "window_rows": null.window_rows,
            "drifted_features": sum(feature.drifted for feature in features),
            "alarms_per_month": budget * BUDGET_SHARES[kind],
        },
    )


def _at_window(
    null: FeatureNull, ks: NDArray[np.float64], psi: NDArray[np.float64], rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the statistics of fewer rows than the null's would be of as many, were there no drift.

    By chance KS falls with the root of the rows, PSI with the rows. Taken as they are, windows of 200 rows
    were over the level of 250 three times as often as those of 250.
    """
    share = min(1.0, rows / null.window_rows)
    return ks * np.sqrt(share), psi * share


def _features(
    reference: Reference,
    null: FeatureNull,
    ks: NDArray[np.float64],
    psi: NDArray[np.float64],
    limits: SeverityLimits,
    rows: int,
) -> tuple[FeatureDrift, ...]:
    scaled = _at_window(null, ks, psi, rows)
    p_value = null.family_wise(null.excess.extremeness(*scaled))
    excess = null.excess.by_feature(*scaled)
    drifted = ((ks > limits.ks) | (psi > limits.psi)) & (p_value <= FAMILY_ALPHA)
    weight = np.array(null.excess.weight)
    order = np.lexsort((np.arange(len(ks)), -weight, -weight * excess))
    return tuple(
        FeatureDrift(
            name=reference.features[place].name,
            importance=reference.features[place].importance,
            ks=float(ks[place]),
            psi=float(psi[place]),
            p_value=float(p_value[place]),
            excess=float(excess[place]),
            drifted=bool(drifted[place]),
        )
        for place in order
    )
