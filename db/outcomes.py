"""Answers whose outcome can be looked for, and those that have one, key by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import CandleSeries, Prediction
from db.predictions import EACH_KEY
from ml.candles import to_datetime64
from ml.keys import INTERVALS, ModelKey, interval_duration
from ml.live_accuracy import ResolvedSignals
from ml.outcomes import GIVEN_UP_AFTER, live_until

__all__ = ["KeyOutcomes", "due", "keys", "read"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOutcomes:
    """One key's resolved signals of a span."""

    signals: ResolvedSignals
    horizon: timedelta
    """The longest of theirs."""
    newest_model_id: int | None
    """Of the models that answered; None where none did."""


def due(
    session: Session, now: datetime, limit: int, *, after: tuple[datetime, UUID] | None = None
) -> Sequence[Prediction]:
    """At most ``limit`` open predictions that something is to be found out about, oldest horizon first.

    Their horizon has ended by ``now``, and their series reaches its end, or is not stored at all, or was
    waited for until it was given up, or they hold nothing to draw barriers from. The others wait for candles:
    however many they are, they are passed over here, where that is a comparison each, and keep no others
    waiting.

    Args:
        session: the caller's.
        now: the clock's.
        limit: rows.
        after: (``horizon_end``, ``id``) of the last one seen: some stay open all the same, as where a model's
            horizon is longer than its record says.
    """
    step = sa.case(INTERVALS, value=Prediction.interval)
    of_series = (CandleSeries.symbol == Prediction.symbol) & (CandleSeries.interval == Prediction.interval)
    query = (
        sa.select(Prediction)
        .outerjoin(CandleSeries, of_series)
        .where(
            Prediction.resolved_at.is_(None),
            Prediction.horizon_end <= now,
            sa.or_(
                CandleSeries.symbol.is_(None),
                CandleSeries.last_open + step >= Prediction.horizon_end,
                Prediction.horizon_end < now - GIVEN_UP_AFTER,
                Prediction.atr.is_(None) & Prediction.features.is_(None),
            ),
        )
    )
    if after is not None:
        query = query.where(sa.tuple_(Prediction.horizon_end, Prediction.id) > after)
    return session.scalars(query.order_by(Prediction.horizon_end, Prediction.id).limit(limit)).all()


def keys(session: Session, symbol: str | None = None) -> list[ModelKey]:
    """Every key with a prediction, or every one of a symbol, in order."""
    return [ModelKey(*row) for row in session.execute(_KEYS, {"symbol": symbol})]


def read(session: Session, key: ModelKey, *, since: datetime, until: datetime) -> KeyOutcomes | None:
    """The key's signals of a span, each once, whose horizon ended by ``until`` and that are resolved.

    Asked for again, a signal counts once: with its first answer that has a label, else its first answer,
    else its first abstention. A caller who repeats himself would otherwise weigh more than the market, and
    one whose candles are another market's would take the signal's label away. Answers of shadow models do
    not count, nor those given later than ``ml.outcomes.live_until``.

    Args:
        session: the caller's.
        key: symbol, interval, and the regime that the market was in, whichever model answered.
        since: signal time, included.
        until: end of the horizon, included, so that slow outcomes are as many as quick ones.

    Returns:
        None where there is no such signal.
    """
    rows = session.execute(
        _READ,
        {
            "symbol": key.symbol,
            "interval": key.interval,
            "regime": key.regime,
            "since": since,
            "until": until,
            "live": live_until(EPOCH, key.interval) - EPOCH,
        },
    ).all()
    if not rows:
        return None
    return KeyOutcomes(
        signals=ResolvedSignals(
            signal_time=np.array([to_datetime64(row.signal_time) for row in rows], dtype="datetime64[us]"),
            label=_floats(rows, "label"),
            net_return_atr=_floats(rows, "net_return_atr"),
            confidence=_floats(rows, "confidence"),
            threshold=_floats(rows, "threshold"),
            pattern_confidence=_floats(rows, "pattern_confidence"),
            accepted=np.array([row.decision == "accept" for row in rows]),
            answered_by=tuple(row.answered_by for row in rows),
            abstain_reason=tuple(row.abstain_reason for row in rows),
            unresolved=tuple(row.unresolved for row in rows),
        ),
        # Records come from outside the database: one without a horizon is taken for a candle's.
        horizon=max(interval_duration(key.interval), *(row.horizon_end - row.signal_time for row in rows)),
        newest_model_id=max((row.answered_by for row in rows if row.answered_by is not None), default=None),
    )


def _floats(rows: Sequence[sa.Row[Any]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """NULL becomes NaN."""
    return np.array([getattr(row, name) for row in rows], dtype=np.float64)


_KEYS = sa.text(f"""
    {EACH_KEY}
    SELECT symbol, interval, regime FROM keys
    WHERE CAST(:symbol AS text) IS NULL OR symbol = :symbol
    ORDER BY symbol, interval, regime
""")

_READ = sa.text("""
    SELECT DISTINCT ON (signal_time, direction)
           signal_time, horizon_end, label, net_return_atr, confidence, pattern_confidence, decision,
           abstain_reason, CAST(metadata ->> 'threshold' AS float8) AS threshold,
           metadata ->> 'unresolved' AS unresolved,
           CASE WHEN confidence IS NOT NULL THEN model_id END AS answered_by
    FROM ml_performance_tracking
    WHERE symbol = :symbol AND interval = :interval AND regime = :regime
      AND signal_time >= :since AND signal_time < :until AND horizon_end <= :until
      AND resolved_at IS NOT NULL AND role = 'champion'
      AND (confidence IS NULL OR as_of <= signal_time + :live)
    ORDER BY signal_time, direction, confidence IS NULL, label IS NULL, as_of, id
""")
