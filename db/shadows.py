"""Answers that a model gives in shadow: what it is still to be asked, and how it did beside the champion.

A shadow's row is a champion's row judged again by another model: the same signal and features, under an id
of its own. Its ``metadata`` names the champion's row under ``of``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from db.models import Prediction
from ml.keys import ALL_REGIMES, REGIMES, ModelKey, interval_duration
from ml.outcomes import live_until

__all__ = ["OF", "shadow_id", "to_score"]

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
    after: tuple[datetime, UUID] | None = None,
) -> Sequence[Prediction]:
    """At most ``limit`` answers of the key that a model has not been asked about yet, the oldest first.

    Those given from ``since`` on with their features, in time (``ml.outcomes.live_until``), by another
    model. A row may be drained late, so every row since then is looked at, by the index of the key, and those
    that are scored already are left out by the index of the model.

    An answer of the fallback is one of the key ``all``, whatever the regime of its market; a key without a
    champion is asked about those too, for nobody else answers there.

    Args:
        session: the caller's.
        key: of the model that answers in shadow.
        model_id: that model.
        since: when it began to; aware.
        has_champion: whether the key has one.
        limit: rows.
        after: (``signal_time``, ``id``) of the last one seen: some cannot be scored and stay.
    """
    scored = aliased(Prediction)
    is_scored = sa.exists().where(
        scored.model_id == model_id,
        scored.signal_time == Prediction.signal_time,
        scored.role == "shadow",
        scored.details[OF].astext == sa.cast(Prediction.id, sa.Text),
    )
    query = (
        sa.select(Prediction)
        .where(
            Prediction.symbol == key.symbol,
            Prediction.interval == key.interval,
            *_asked(key, has_champion),
            Prediction.signal_time >= since - interval_duration(key.interval),
            Prediction.role == "champion",
            Prediction.features.is_not(None),
            Prediction.as_of >= since,
            Prediction.as_of <= Prediction.signal_time + (live_until(EPOCH, key.interval) - EPOCH),
            Prediction.model_id.is_distinct_from(model_id),
            ~is_scored,
        )
        .order_by(Prediction.signal_time, Prediction.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(sa.tuple_(Prediction.signal_time, Prediction.id) > after)
    return session.scalars(query).all()


def _asked(key: ModelKey, has_champion: bool) -> tuple[sa.ColumnElement[bool], ...]:
    """Which answers are those of the key."""
    nobody = Prediction.served_regime.is_(None)
    if key.regime == ALL_REGIMES:
        own = Prediction.served_regime == ALL_REGIMES
        of_key = own if has_champion else own | (nobody & (Prediction.abstain_reason == "no_model"))
        return Prediction.regime.in_(REGIMES), of_key
    of_regime = Prediction.regime == key.regime
    return (of_regime, (Prediction.served_regime == key.regime) | nobody) if has_champion else (of_regime,)
