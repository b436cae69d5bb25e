"""Drift checks: each written once, with its features, and kept as the history of the score.

A check is of one champion, one kind, and the candles up to one close: its id says which, so that a second
run of the same check finds it there and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session

from db.base import Json
from db.drift_models import DriftAlert, DriftDetail
from db.models import ModelRow, Prediction
from ml.alarms import DriftCheck, SeverityLimits
from ml.candles import to_datetime64
from ml.keys import REGIMES, ModelKey

__all__ = [
    "DriftAlert",
    "DriftDetail",
    "Matured",
    "alert_id",
    "checked_until",
    "details",
    "get_alert",
    "matured",
    "newest_alerts",
    "newest_check",
    "recent_alerts",
    "record",
]

ALERT_IDS: Final = UUID("0d5f8a52-1c3b-5a0e-9c51-4f8f0a6f2d43")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matured:
    """Outcomes of one model's live answers, by signal time. Every array has shape (m,)."""

    confidence: NDArray[np.float64]
    label: NDArray[np.float64]
    """0 or 1."""
    regime: NDArray[np.int8]
    """Of the signal: index into ``REGIMES``, -1 where it is not known."""
    signal_time: NDArray[np.datetime64]


def alert_id(key: ModelKey, model_id: int, kind: str, as_of: datetime) -> UUID:
    """The same for the same check, whoever makes it and however often."""
    return uuid5(ALERT_IDS, f"{key}/{model_id}/{kind}/{as_of.astimezone(UTC).isoformat()}")


def record(
    session: Session,
    key: ModelKey,
    model_id: int,
    check: DriftCheck,
    severity: str,
    *,
    as_of: datetime,
    limits: SeverityLimits,
    snoozed_until: datetime | None,
) -> UUID | None:
    """Keep one check with its features; None if it is there already, and nothing was changed.

    Args:
        session: the caller's.
        key: of the champion.
        model_id: the champion.
        check: what was found.
        severity: what its score comes to by ``limits``.
        as_of: close of the newest candle that the check knew.
        limits: those in force.
        snoozed_until: until then nothing is started because of it; None where it may.
    """
    found = alert_id(key, model_id, check.kind, as_of)
    added = session.execute(
        insert(DriftAlert)
        .values(
            id=found,
            as_of=as_of,
            **asdict(key),
            model_id=model_id,
            kind=check.kind,
            severity=severity,
            drift_score=check.score,
            p_value=check.p_value,
            reference_rows=check.reference_rows,
            current_rows=check.current_rows,
            limits=asdict(limits),
            snoozed_until=snoozed_until,
            details={**check.details, "statistic": check.statistic, "level": check.level},
        )
        .on_conflict_do_nothing()
        .returning(DriftAlert.id)
    )
    if added.scalar_one_or_none() is None:
        return None
    if check.features:
        values = json.dumps(_features(check), allow_nan=False)
        session.execute(_INSERT_FEATURES, {"alert_id": found, "as_of": as_of, "features": values})
    return found


def _features(check: DriftCheck) -> list[Json]:
    return [
        {
            "feature": feature.name,
            "ks": feature.ks,
            "p_value": feature.p_value,
            "population_stability_index": feature.psi,
            "importance": feature.importance,
            "metadata": {"excess": feature.excess, "drifted": feature.drifted, "rank": rank},
        }
        for rank, feature in enumerate(check.features, start=1)
    ]


def get_alert(session: Session, alert: UUID) -> DriftAlert | None:
    """The check of this id, or None."""
    query = sa.select(DriftAlert).where(DriftAlert.id == alert).order_by(DriftAlert.as_of).limit(1)
    return session.scalars(query).one_or_none()


def details(session: Session, alert: DriftAlert) -> Sequence[DriftDetail]:
    """The features of a check, those first that add the most to its score."""
    query = sa.select(DriftDetail).where(DriftDetail.alert_id == alert.id, DriftDetail.as_of == alert.as_of)
    return session.scalars(query.order_by(DriftDetail.details["rank"].as_integer())).all()


def recent_alerts(
    session: Session,
    *,
    key: ModelKey | None = None,
    severities: Collection[str] | None = None,
    since: datetime | None = None,
    limit: int,
) -> Sequence[DriftAlert]:
    """The newest ``limit`` checks, newest first; of one key, of these severities, or with ``as_of >= since``.

    Ask with a key, severities or ``since``: each has its index, all checks ever made have none.
    """
    query = sa.select(DriftAlert).order_by(DriftAlert.as_of.desc(), DriftAlert.drift_score.desc())
    if key is not None:
        query = query.where(*DriftAlert.of_key(key))
    if severities is not None:
        query = query.where(DriftAlert.severity.in_(severities))
    if since is not None:
        query = query.where(DriftAlert.as_of >= since)
    return session.scalars(query.limit(limit)).all()


def newest_check(session: Session, key: ModelKey) -> Sequence[DriftAlert]:
    """Every kind of the key's newest check, the highest score first; nothing where none was made."""
    newest = (
        sa.select(DriftAlert.model_id, DriftAlert.as_of)
        .where(*DriftAlert.of_key(key))
        # After a promotion the same candles are looked at again, for the new champion.
        .order_by(DriftAlert.as_of.desc(), DriftAlert.recorded_at.desc())
        .limit(1)
        .subquery()
    )
    query = sa.select(DriftAlert).join(
        newest, (DriftAlert.as_of == newest.c.as_of) & (DriftAlert.model_id == newest.c.model_id)
    )
    query = query.where(*DriftAlert.of_key(key))
    return session.scalars(query.order_by(DriftAlert.drift_score.desc(), DriftAlert.kind)).all()


def newest_alerts(session: Session) -> list[DriftAlert]:
    """The newest check of each key that has a champion: a row a kind; by key, the highest score first."""
    keys = sa.select(ModelRow).where(ModelRow.state == "champion")
    champions = session.scalars(keys.order_by(ModelRow.symbol, ModelRow.interval, ModelRow.regime))
    return [alert for model in champions for alert in newest_check(session, model.key)]


def checked_until(session: Session, key: ModelKey, model_id: int) -> datetime | None:
    """``as_of`` of the newest check of this champion, or None."""
    query = sa.select(sa.func.max(DriftAlert.as_of)).where(
        *DriftAlert.of_key(key), DriftAlert.model_id == model_id
    )
    return session.scalar(query)


def matured(
    session: Session, key: ModelKey, model_id: int, *, since: datetime, until: datetime, live: timedelta
) -> Matured:
    """What became of the answers that a champion gave live, each signal once.

    Args:
        session: the caller's.
        key: of the champion.
        model_id: the champion.
        since: signal time, included.
        until: end of the horizon, included, so that slow outcomes are as many as quick ones.
        live: an answer given longer after its signal does not count.
    """
    query = (
        sa.select(Prediction.signal_time, Prediction.confidence, Prediction.label, Prediction.regime)
        .ext(distinct_on(Prediction.signal_time, Prediction.direction))
        .where(
            Prediction.model_id == model_id,
            Prediction.symbol == key.symbol,
            Prediction.interval == key.interval,
            Prediction.role == "champion",
            Prediction.confidence.is_not(None),
            Prediction.label.is_not(None),
            Prediction.signal_time >= since,
            Prediction.horizon_end <= until,
            Prediction.as_of <= Prediction.signal_time + live,
        )
        .order_by(Prediction.signal_time, Prediction.direction, Prediction.as_of, Prediction.id)
    )
    rows = session.execute(query).all()
    code = {name: index for index, name in enumerate(REGIMES)}
    return Matured(
        confidence=np.array([row.confidence for row in rows], dtype=np.float64),
        label=np.array([row.label for row in rows], dtype=np.float64),
        regime=np.array([code.get(row.regime, -1) for row in rows], dtype=np.int8),
        signal_time=np.array([to_datetime64(row.signal_time) for row in rows], dtype="datetime64[us]"),
    )


# One value for all rows: a statement of 45 rows would take SQLAlchemy longer to write than this takes to run.
_INSERT_FEATURES = sa.text("""
    INSERT INTO ml_drift_details
        (alert_id, as_of, feature, ks, p_value, population_stability_index, importance, metadata)
    SELECT :alert_id, :as_of, feature, ks, p_value, population_stability_index, importance, metadata
    FROM jsonb_to_recordset(CAST(:features AS jsonb)) AS found (
        feature text, ks float8, p_value float8, population_stability_index float8, importance float8,
        metadata jsonb
    )
""")
