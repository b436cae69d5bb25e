"""Answers that a model gives in shadow: what it is still to be asked, and how it did beside the champion.

A shadow's row is a champion's row judged again by another model: the same signal and features, under an id
of its own. Its ``metadata`` names the champion's row under ``of``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session, aliased

from db.models import Prediction
from ml.candles import to_datetime64
from ml.keys import ALL_REGIMES, REGIMES, ModelKey, interval_duration
from ml.live_accuracy import ResolvedSignals
from ml.outcomes import live_until
from ml.paired import PairedOutcomes

__all__ = ["OF", "alone", "has_open", "paired", "shadow_id", "to_score"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OF = "of"
"""In a shadow row's metadata: the id of the champion's row."""


def shadow_id(champion_row: UUID, model_id: int) -> UUID:
    """Id of what a model says in shadow about the signal of a champion's row: always the same."""
    return uuid5(champion_row, str(model_id))


def to_score(
    session: Session,
    key: ModelKey,
    model_id: int,
    *,
    since: datetime,
    has_champion: bool,
    limit: int,
    until: datetime | None = None,
    after: tuple[datetime, UUID] | None = None,
) -> Sequence[Prediction]:
    """At most ``limit`` answers of the key that a model has not been asked about yet, the oldest first.

    Those given from ``since`` on with their features, in time (``ml.outcomes.live_until``), by another
    model. A row may be drained late, so every row since then is looked at, by the index of the key, and those
    that are scored already are left out by the index of what the model has judged.

    An answer of the fallback is one of the key ``all``, whatever the regime of its market; a key without a
    champion is asked about those too, for nobody else answers there.

    Args:
        session: the caller's.
        key: of the model that answers in shadow.
        model_id: that model.
        since: when it began to; aware.
        has_champion: whether the key has one.
        limit: rows.
        until: of the signals' times, included; aware. Without it there is no end.
        after: (``signal_time``, ``id``) of the last one seen: some cannot be scored and stay.
    """
    step = interval_duration(key.interval)
    query = (
        sa.select(Prediction)
        .where(
            Prediction.symbol == key.symbol,
            Prediction.interval == key.interval,
            *_asked(key, has_champion),
            Prediction.signal_time >= since - step,
            Prediction.role == "champion",
            Prediction.features.is_not(None),
            Prediction.as_of >= since,
            Prediction.as_of <= Prediction.signal_time + (live_until(EPOCH, key.interval) - EPOCH),
            Prediction.model_id.is_distinct_from(model_id),
            ~_is_scored(model_id, since - step),
        )
        .order_by(Prediction.signal_time, Prediction.id)
        .limit(limit)
    )
    if until is not None:
        query = query.where(Prediction.signal_time <= until)
    if after is not None:
        query = query.where(sa.tuple_(Prediction.signal_time, Prediction.id) > after)
    return session.scalars(query).all()


def has_open(session: Session, model_id: int, *, since: datetime, until: datetime) -> bool:
    """Whether a model, as champion, answered a signal whose outcome is still to be found out.

    Args:
        session: the caller's.
        model_id: that model.
        since: signal time, included; aware.
        until: end of the horizon, included; aware.
    """
    open_ones = (
        sa.select(Prediction.id)
        .where(
            Prediction.model_id == model_id,
            Prediction.role == "champion",
            Prediction.confidence.is_not(None),
            Prediction.signal_time >= since,
            Prediction.horizon_end <= until,
            Prediction.resolved_at.is_(None),
        )
        .limit(1)
    )
    return session.scalar(open_ones) is not None


def _is_scored(model_id: int, since: datetime) -> sa.ColumnElement[bool]:
    """Found by the row judged, not by its time: a signal's answers would be compared each with each."""
    scored = aliased(Prediction)
    return sa.exists().where(
        scored.model_id == model_id,
        scored.signal_time >= since,
        scored.role == "shadow",
        scored.details[OF].astext == sa.cast(Prediction.id, sa.Text),
    )


def _asked(key: ModelKey, has_champion: bool) -> tuple[sa.ColumnElement[bool], ...]:
    """Which answers are those of the key."""
    nobody = Prediction.served_regime.is_(None)
    if key.regime == ALL_REGIMES:
        own = Prediction.served_regime == ALL_REGIMES
        of_key = own if has_champion else own | (nobody & (Prediction.abstain_reason == "no_model"))
        return Prediction.regime.in_(REGIMES), of_key
    of_regime = Prediction.regime == key.regime
    return (of_regime, (Prediction.served_regime == key.regime) | nobody) if has_champion else (of_regime,)


def paired(
    session: Session, key: ModelKey, new_id: int, old_id: int, *, since: datetime, until: datetime
) -> PairedOutcomes:
    """The key's signals that two models answered, one as champion and the other in shadow, each once.

    Asked for again, a signal counts once: with its first answer that has a label, else its first one. Answers
    given later than ``ml.outcomes.live_until`` do not count. Nothing counts from the first signal on whose
    outcome was to be found out at ``until`` and is not yet; one that can have no label is left out.

    Args:
        session: the caller's.
        key: of both models.
        new_id: whose arrays are ``new_*``.
        old_id: the other's.
        since: signal time, included; aware.
        until: end of the horizon, included; aware.
    """
    live = live_until(EPOCH, key.interval) - EPOCH
    of = {"symbol": key.symbol, "interval": key.interval, "new": new_id, "old": old_id}
    rows = session.execute(_PAIRED, {**of, "since": since, "live": live}).all()
    known = takewhile(lambda row: row.resolved_at is not None and row.horizon_end <= until, rows)
    labelled = [row for row in known if row.label is not None]
    return PairedOutcomes(
        signal_time=_times(labelled),
        label=_floats(labelled, "label"),
        net_return_atr=_floats(labelled, "net_return_atr"),
        new_confidence=_floats(labelled, "new_confidence"),
        old_confidence=_floats(labelled, "old_confidence"),
        new_positive=_flags(labelled, "new_positive"),
        old_positive=_flags(labelled, "old_positive"),
        new_accepted=_flags(labelled, "new_accepted"),
        old_accepted=_flags(labelled, "old_accepted"),
    )


def alone(
    session: Session, key: ModelKey, model_id: int, *, since: datetime, until: datetime
) -> ResolvedSignals:
    """What a model answered in shadow, each signal once, where its key has no champion to answer beside.

    Args:
        session: the caller's.
        key: of the model.
        model_id: the model.
        since: signal time, included; aware.
        until: end of the horizon, included; aware.
    """
    of = {"symbol": key.symbol, "interval": key.interval, "model": model_id}
    rows = session.execute(_ALONE, {**of, "since": since, "until": until}).all()
    return ResolvedSignals(
        signal_time=_times(rows),
        label=_floats(rows, "label"),
        net_return_atr=_floats(rows, "net_return_atr"),
        confidence=_floats(rows, "confidence"),
        threshold=_floats(rows, "threshold"),
        pattern_confidence=_floats(rows, "pattern_confidence"),
        accepted=_flags(rows, "accepted"),
        answered_by=tuple(model_id if row.confidence is not None else None for row in rows),
        abstain_reason=tuple(row.abstain_reason for row in rows),
        unresolved=tuple(row.unresolved for row in rows),
    )


def _times(rows: Sequence[sa.Row[Any]]) -> NDArray[np.datetime64]:
    return np.array([to_datetime64(row.signal_time) for row in rows], dtype="datetime64[us]")


def _floats(rows: Sequence[sa.Row[Any]], name: str) -> NDArray[np.float64]:
    """NULL becomes NaN."""
    return np.array([getattr(row, name) for row in rows], dtype=np.float64)


def _flags(rows: Sequence[sa.Row[Any]], name: str) -> NDArray[np.bool_]:
    """NULL, as where a record names no threshold, becomes False."""
    return np.array([bool(getattr(row, name)) for row in rows], dtype=np.bool_)


_OF_MODEL = """
    CASE WHEN given.model_id = :{model} THEN given.confidence ELSE shadow.confidence END
        AS {model}_confidence,
    CASE WHEN given.model_id = :{model}
         THEN given.confidence >= CAST(given.metadata ->> 'threshold' AS float8)
         ELSE shadow.confidence >= CAST(shadow.metadata ->> 'threshold' AS float8)
    END AS {model}_positive,
    CASE WHEN given.model_id = :{model} THEN given.decision ELSE shadow.decision END = 'accept'
        AS {model}_accepted
"""

_PAIRED = sa.text(f"""
    SELECT DISTINCT ON (given.signal_time, given.direction)
           given.signal_time, given.horizon_end, given.resolved_at, given.label, given.net_return_atr,
           {_OF_MODEL.format(model="new")}, {_OF_MODEL.format(model="old")}
    FROM ml_performance_tracking AS shadow
    JOIN ml_performance_tracking AS given
      ON given.id = CAST(shadow.metadata ->> '{OF}' AS uuid) AND given.signal_time = shadow.signal_time
    WHERE shadow.model_id IN (:new, :old) AND shadow.role = 'shadow' AND shadow.signal_time >= :since
      AND given.model_id IN (:new, :old) AND given.model_id <> shadow.model_id AND given.role = 'champion'
      AND given.symbol = :symbol AND given.interval = :interval
      AND given.confidence IS NOT NULL AND shadow.confidence IS NOT NULL
      AND given.as_of <= given.signal_time + :live
    ORDER BY given.signal_time, given.direction, given.label IS NULL, given.as_of, given.id
""")

_ALONE = sa.text("""
    SELECT DISTINCT ON (signal_time, direction)
           signal_time, label, net_return_atr, confidence, pattern_confidence, abstain_reason,
           decision = 'accept' AS accepted, CAST(metadata ->> 'threshold' AS float8) AS threshold,
           metadata ->> 'unresolved' AS unresolved
    FROM ml_performance_tracking
    WHERE model_id = :model AND role = 'shadow' AND signal_time >= :since AND horizon_end <= :until
      AND symbol = :symbol AND interval = :interval AND resolved_at IS NOT NULL
    ORDER BY signal_time, direction, confidence IS NULL, label IS NULL, as_of, id
""")
