"""A past prediction made again from its record: same features and artifact, same numbers to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from db import registry
from db.predictions import Prediction
from ml.artifact import Model, library_versions
from ml.confidence import confidence_from
from ml.dataset import ROW_FEATURE_NAMES
from ml.errors import ArtifactCorrupt
from ml.inference import judge
from ml.patterns import pattern_mask
from ml.signals import SignalRequest
from tasks.markets import read_window
from tasks.stored_model import load

__all__ = ["Compared", "FromCandles", "Remade", "brings_own_confidence", "remade_json", "remake"]

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Compared:
    """One value of the answer, as recorded and as made again."""

    name: str
    recorded: float | str | None
    again: float | str | None

    @property
    def same(self) -> bool:
        """To the last bit; a value that was not given is the same as none."""
        return self.recorded == self.again


@dataclass(frozen=True, slots=True, eq=False)
class FromCandles:
    """The features made again from the candles as they were known when the answer was given."""

    state: Literal["equal", "different", "not_made"]
    reason: str | None = None
    """With ``not_made``: why, a code of ``ml.inference.ABSTAIN_REASONS``."""
    features: Features | None = None
    """(F,)."""
    largest: str | None = None
    """With ``different``: the feature that is farthest off."""
    difference: float | None = None
    """Its distance from the recorded value; NaN where one of the two is missing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Remade:
    """What came of it, and what was used."""

    row: Prediction
    model_row: registry.ModelRow | None
    """None where no model was used: there is nothing to make again."""
    model: Model | None = None
    features: Features | None = None
    """(F,), as recorded; None where nothing could be seen."""
    compared: tuple[Compared, ...] = ()
    libraries: Mapping[str, str]
    """Versions now; those of ``model.libraries`` made the model."""
    candles: FromCandles | None = None
    """None where no features were recorded."""

    @property
    def identical(self) -> bool:
        """Whether every value that there is to compare came out as recorded."""
        return all(one.same for one in self.compared)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Of ``features``."""
        return ROW_FEATURE_NAMES if self.model is None else self.model.feature_names


def remake(session: Session, row: Prediction, *, max_signal_age_bars: float) -> Remade:
    """Make a prediction again from what its row and the registry hold.

    Limits of the settings (age, out-of-distribution) are no part of a record: an abstention for one of
    them is taken as given, and what it was measured by is compared.

    Args:
        session: the caller's.
        row: the record.
        max_signal_age_bars: the setting, which a worker's window of candles is made for.

    Raises:
        ArtifactCorrupt: the model's bytes are not those that were decided on, or of other features.
    """
    features = None if row.features is None else np.frombuffer(row.features, "<f4").astype(np.float32)
    again = None if features is None else _from_candles(session, row, features, max_signal_age_bars)
    model_row = None if row.model_id is None else registry.by_id(session, [row.model_id])[row.model_id]
    libraries = library_versions()
    if model_row is None or features is None:
        return Remade(row=row, model_row=None, features=features, candles=again, libraries=libraries)
    predictor = load(session, model_row)
    model = predictor.model
    if len(features) != len(model.feature_names):
        raise ArtifactCorrupt(
            f"prediction {row.id} holds {len(features)} features, its model {model_row.key}, version "
            f"{model_row.version}, takes {len(model.feature_names)}"
        )
    judged = judge(predictor, features[None, :])
    given = row.abstain_reason is None
    decision = "abstain" if not given else "accept" if judged.accept[0] else "reject"
    compared = (
        Compared("confidence", row.confidence, float(judged.confidence[0]) if given else None),
        Compared(
            "expected_net_return_atr",
            row.expected_net_return_atr,
            float(judged.expected_net_return_atr[0]) if given else None,
        ),
        Compared("out_of_distribution", row.out_of_distribution, float(judged.out_of_distribution[0])),
        Compared("decision", row.decision, decision),
        Compared("model_age_seconds", row.model_age_seconds, (row.as_of - model.as_of).total_seconds()),
    )
    return Remade(
        row=row,
        model_row=model_row,
        model=model,
        features=features,
        compared=compared,
        libraries=libraries,
        candles=again,
    )


def brings_own_confidence(remade: Remade) -> bool:
    """Whether the patterns' own confidence was the caller's: the model's hit rates give another."""
    row, model = remade.row, remade.model
    if model is None or row.pattern_confidence is None:
        return row.pattern_confidence is not None
    rate = confidence_from(model.pattern_hit_rates, pattern_mask(row.patterns), row.direction)
    return row.pattern_confidence != rate


def _from_candles(
    session: Session, row: Prediction, recorded: Features, max_signal_age_bars: float
) -> FromCandles:
    """By the code that answered, from the window that a worker reads; a caller may have brought another."""
    window = read_window(
        session, row.symbol, row.interval, known_at=row.as_of, max_signal_age_bars=max_signal_age_bars
    )
    request = SignalRequest(
        symbol=row.symbol,
        interval=row.interval,
        time=row.signal_time,
        direction=row.direction,
        patterns=pattern_mask(row.patterns),
        confidence=None,
        signal_id=None,
        candles=None,
        features=None,
    )
    [seen] = window.see([request], [row.signal_time])
    if seen.features is None:
        return FromCandles("not_made", reason=seen.missing)
    made = seen.features
    if np.array_equal(made, recorded, equal_nan=True):
        return FromCandles("equal", features=made)
    both_missing = np.isnan(made) & np.isnan(recorded)
    distance = np.where(both_missing, 0.0, np.abs(made.astype(np.float64) - recorded))
    farthest = int(np.argmax(np.where(np.isnan(distance), np.inf, distance)))
    return FromCandles(
        "different",
        features=made,
        largest=ROW_FEATURE_NAMES[farthest],
        difference=float(distance[farthest]),
    )


def remade_json(remade: Remade, *, with_features: bool) -> dict[str, Any]:
    """Plain values. ``identical`` is None where there was nothing to compare; ``source`` is where the market
    came from: ``stored`` candles, or the caller's own (``inline``) or its own ``features``."""
    again, model_row, model = remade.candles, remade.model_row, remade.model
    made: dict[str, Any] = {
        "prediction_id": str(remade.row.id),
        "identical": remade.identical if remade.compared else None,
        "source": remade.row.details.get("source"),
        "model": None if model_row is None else str(model_row.key),
        "model_version": None if model_row is None else model_row.version,
        "artifact_sha256": None if model_row is None else model_row.artifact_sha256,
        "booster_sha256": None if model_row is None else model_row.booster_sha256,
        "abstain_reason": remade.row.abstain_reason,
        "values": {
            one.name: {"recorded": one.recorded, "again": one.again, "same": one.same}
            for one in remade.compared
        },
        "libraries_then": None if model is None else dict(model.libraries),
        "libraries_now": dict(remade.libraries),
        "features_from_candles": None
        if again is None
        else {
            "state": again.state,
            "reason": again.reason,
            "largest": again.largest,
            "difference": _number(again.difference),
        },
    }
    if with_features and remade.features is not None:
        made["features"] = {
            name: _number(value)
            for name, value in zip(remade.feature_names, remade.features.tolist(), strict=True)
        }
    return made


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or np.isnan(value) else value
