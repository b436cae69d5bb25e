"""What a champion's drift statistics come to where nothing drifts, all kinds together; made in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ml.alarms import SeverityLimits
from ml.config import DriftConfig
from ml.decay import OutcomeNull, outcome_null
from ml.drift import Reference, make_reference
from ml.drift_check import check_features
from ml.drift_null import FeatureNull, feature_null
from ml.rows import SignalRows

__all__ = ["DriftCalibration", "DriftReference", "drift_reference"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCalibration:
    """The nulls of one model, each from its own training period."""

    features: FeatureNull
    """Of the features, from the rows it learned from."""
    confidence: FeatureNull
    """Of its confidence, from the rows its trees have not seen."""
    outcomes: OutcomeNull
    """Of its errors, from the rows its trees have not seen."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name).to_json() for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(
            features=FeatureNull.from_json(value["features"]),
            confidence=FeatureNull.from_json(value["confidence"]),
            outcomes=OutcomeNull.from_json(value["outcomes"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReference:
    """Everything a later drift check of one model needs."""

    reference: Reference
    calibration: DriftCalibration
    test_score: float
    """The drift score of its test rows, which ``max_feature_drift_ks`` is held against."""


def drift_reference(
    trained: SignalRows,
    unseen: SignalRows,
    test: SignalRows,
    *,
    unseen_confidence: Floats,
    importance: tuple[float, ...],
    config: DriftConfig,
    seed: int,
) -> DriftReference:
    """Keep a model's reference and find what its statistics come to without drift.

    Args:
        trained: rows that its trees, calibration or threshold learned from, in time order; n >= 1.
        unseen: labelled rows that its trees have not seen, in time order: what it says of others is surer
            than it is.
        test: rows that nothing of it has seen, labelled.
        unseen_confidence: what it says of ``unseen``.
        importance: (F,) share of the total gain.
        config: window, blocks, budget.
        seed: of the simulation.
    """
    weights = np.array(importance)
    reference = make_reference(trained.features, trained.feature_names, weights, confidence=unseen_confidence)
    assert reference.confidence is not None
    said = Reference((reference.confidence,), len(unseen))
    as_feature = unseen_confidence.astype(np.float32)[:, None]
    calibration = DriftCalibration(
        features=feature_null(trained.features, trained.close_time, weights, reference, config, seed=seed),
        confidence=feature_null(as_feature, unseen.close_time, np.ones(1), said, config, seed=seed),
        # Not of the test rows alone: a model is promoted for doing well there, and luck does not last.
        outcomes=outcome_null(
            unseen_confidence, unseen.label, unseen.regime, unseen.close_time, config, seed=seed
        ),
    )
    budget = config.false_retrainings_per_month
    checked = check_features(
        reference, calibration.features, test.features, SeverityLimits(), budget_per_month=budget
    )
    return DriftReference(reference=reference, calibration=calibration, test_score=checked.score)
