"""The drift tables: reference, checks, limits and what was done. See ``db/models.py`` for the rest."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    SmallInteger,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Json, Keyed, key_checks, one_of, share
from db.models import ModelRow, TrainingJob
from ml.keys import INTERVALS, MODEL_REGIMES

__all__ = [
    "ANY",
    "SEVERITIES",
    "DriftAction",
    "DriftAlert",
    "DriftDetail",
    "DriftNull",
    "DriftThreshold",
    "ReferenceFeature",
]

ANY: Final = "*"
"""In ``ml_drift_thresholds``: every symbol, interval or regime without a row of its own."""

SEVERITIES: Final = ("none", "low", "medium", "high", "critical")


class ReferenceFeature(Base):
    """What one feature looked like where its model was judged: the drift check's reference."""

    __tablename__ = "ml_reference_features"
    model_id: Mapped[int] = mapped_column(BigInteger, ForeignKey(ModelRow.id), primary_key=True)
    feature: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger)
    """Column of the feature matrix."""
    importance: Mapped[float]
    sample: Mapped[bytes]
    """Ascending float32, little endian, NaN last."""
    bin_edges: Mapped[list[float]]
    bin_shares: Mapped[list[float]]
    rows: Mapped[int]
    """Rows that the sample and the bins were made from."""
    __table_args__ = (
        UniqueConstraint("model_id", "position", name="uq_ml_reference_features_position"),
        share("importance"),
        CheckConstraint("cardinality(bin_shares) = cardinality(bin_edges) + 1", name="bins"),
    )


class DriftNull(Base):
    """What drift statistics of one model come to where nothing drifts: made once, when it was trained."""

    __tablename__ = "ml_drift_nulls"
    model_id: Mapped[int] = mapped_column(BigInteger, ForeignKey(ModelRow.id), primary_key=True)
    body: Mapped[Json]
    """As ``ml.drift_calibration.DriftCalibration.to_json``."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DriftAlert(Keyed, Base):
    """One drift check of one champion. Severity ``none`` keeps the history of the score."""

    __tablename__ = "ml_drift_alerts"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    as_of: Mapped[datetime] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(BigInteger, ForeignKey(ModelRow.id))
    kind: Mapped[str]
    severity: Mapped[str]
    drift_score: Mapped[float]
    p_value: Mapped[float | None]
    reference_rows: Mapped[int]
    current_rows: Mapped[int]
    limits: Mapped[Json]
    snoozed_until: Mapped[datetime | None]
    details: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        *key_checks(),
        one_of("kind", ("features", "scores", "calibration", "accuracy")),
        one_of("severity", SEVERITIES),
        share("p_value"),
        CheckConstraint("drift_score >= 0 AND drift_score < 'infinity'", name="drift_score"),
        Index("ix_ml_drift_alerts_key", "symbol", "interval", "regime", text("as_of DESC")),
        Index("ix_ml_drift_alerts_severity", "severity", text("as_of DESC")),
    )


class DriftDetail(Base):
    """One feature of one drift check."""

    __tablename__ = "ml_drift_details"
    alert_id: Mapped[UUID] = mapped_column(primary_key=True)
    feature: Mapped[str] = mapped_column(primary_key=True)
    as_of: Mapped[datetime] = mapped_column(primary_key=True)
    ks: Mapped[float]
    p_value: Mapped[float | None]
    population_stability_index: Mapped[float | None]
    importance: Mapped[float]
    details: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    __table_args__ = (share("ks"), share("p_value"))


class DriftThreshold(Base):
    """Limits of a key from ``valid_from`` on; ``ANY`` stands for every key without its own."""

    __tablename__ = "ml_drift_thresholds"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    symbol: Mapped[str]
    interval: Mapped[str]
    regime: Mapped[str]
    ks: Mapped[float] = mapped_column(server_default="0.15")
    population_stability_index: Mapped[float] = mapped_column(server_default="0.25")
    low: Mapped[float] = mapped_column(server_default="0.10")
    medium: Mapped[float] = mapped_column(server_default="0.15")
    high: Mapped[float] = mapped_column(server_default="0.20")
    critical: Mapped[float] = mapped_column(server_default="0.30")
    valid_from: Mapped[datetime] = mapped_column(server_default=func.now())
    valid_until: Mapped[datetime | None]
    changed_by: Mapped[str]
    why: Mapped[str]
    details: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    __table_args__ = (
        CheckConstraint(f"symbol = '{ANY}' OR symbol ~ '^[A-Z0-9]{{2,24}}$'", name="symbol"),
        one_of("interval", (ANY, *INTERVALS)),
        one_of("regime", (ANY, *MODEL_REGIMES)),
        share("ks"),
        CheckConstraint("population_stability_index > 0", name="population_stability_index"),
        CheckConstraint(
            "0 < low AND low < medium AND medium < high AND high < critical AND critical < 'infinity'",
            name="severities",
        ),
        Index(
            "uq_ml_drift_thresholds_current",
            "symbol",
            "interval",
            "regime",
            unique=True,
            postgresql_where=text("valid_until IS NULL"),
        ),
    )


class DriftAction(Keyed, Base):
    """What was done about an alert, and what came of it. One open action a key."""

    __tablename__ = "ml_drift_actions"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    alert_id: Mapped[UUID]
    alert_as_of: Mapped[datetime]
    model_id: Mapped[int] = mapped_column(BigInteger, ForeignKey(ModelRow.id))
    """The champion that the alert was about."""
    severity: Mapped[str]
    action: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="open")
    job_id: Mapped[str | None] = mapped_column(ForeignKey(TrainingJob.id))
    due_at: Mapped[datetime | None]
    as_of: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    snoozed_until: Mapped[datetime | None]
    """Until then alerts of the key start nothing."""
    outcome: Mapped[Json | None]
    """What came of it: the job's result, the model, and in time whether it paid."""
    __table_args__ = (
        *key_checks(),
        one_of("severity", SEVERITIES),
        one_of("action", ("retrain_now", "schedule_retraining", "monitor", "record", "rollback")),
        one_of("state", ("open", "done", "cancelled", "snoozed")),
        Index(
            "uq_ml_drift_actions_open",
            "symbol",
            "interval",
            "regime",
            unique=True,
            postgresql_where=text("state = 'open'"),
        ),
        Index("ix_ml_drift_actions_alert", "alert_id"),
        Index("ix_ml_drift_actions_key", "symbol", "interval", "regime", text("as_of DESC")),
    )
