"""What a champion's drift statistics come to where nothing drifts, all kinds together; made in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ml.decay import OutcomeNull
from ml.drift_null import FeatureNull

__all__ = ["DriftCalibration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCalibration:
    """The nulls of one model, each from its own training period."""

    features: FeatureNull
    """Of the features, from the rows it learned from."""
    confidence: FeatureNull
    """Of its confidence, from the rows its trees have not seen."""
    outcomes: OutcomeNull
    """Of its errors, from its test rows."""

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
