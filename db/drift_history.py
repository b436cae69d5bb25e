"""Drift checks over a span of days, counted by the database: an hour of 500 keys is 2,000 rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.drift_models import DriftAction, DriftAlert
from ml.keys import ModelKey

__all__ = ["DriftDay", "daily", "newest", "snoozing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftDay:
    """A key's checks of one severity within 24 hours."""

    key: ModelKey
    days_back: int
    """0 for the last 24 hours."""
    severity: str
    checks: int
    largest_score: float


def daily(session: Session, *, until: datetime, days: int) -> list[DriftDay]:
    """The checks with ``until - days < as_of <= until``, by key, day and severity, in no order."""
    back = sa.func.floor(sa.extract("epoch", sa.literal(until) - DriftAlert.as_of) / 86_400)
    parts = (DriftAlert.symbol, DriftAlert.interval, DriftAlert.regime)
    query = (
        sa.select(
            *parts,
            back.cast(sa.Integer).label("back"),
            DriftAlert.severity,
            sa.func.count(),
            sa.func.max(DriftAlert.drift_score),
        )
        .where(DriftAlert.as_of <= until, DriftAlert.as_of > until - timedelta(days=days))
        .group_by(*parts, "back", DriftAlert.severity)
    )
    return [
        DriftDay(
            key=ModelKey(*row[:3]), days_back=row[3], severity=row[4], checks=row[5], largest_score=row[6]
        )
        for row in session.execute(query)
    ]


def newest(session: Session, *, until: datetime, days: int) -> Sequence[DriftAlert]:
    """Each key's newest check of each kind in that span, in no order."""
    parts = (DriftAlert.symbol, DriftAlert.interval, DriftAlert.regime, DriftAlert.kind)
    return session.scalars(
        sa.select(DriftAlert)
        .distinct(*parts)
        .where(DriftAlert.as_of <= until, DriftAlert.as_of > until - timedelta(days=days))
        .order_by(*parts, DriftAlert.as_of.desc())
    ).all()


def snoozing(session: Session, now: datetime) -> Sequence[DriftAction]:
    """Actions that have ended and until whose ``snoozed_until`` alerts of their key start nothing."""
    query = sa.select(DriftAction).where(DriftAction.state != "open", DriftAction.snoozed_until > now)
    return session.scalars(query).all()
