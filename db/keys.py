"""What was said about keys at run time: added, frozen, thawed. Each with an audit row."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import audit
from db.models import KeyRow
from db.registry import lock_key
from ml.keys import MODEL_REGIMES, ModelKey, check_symbol, interval_duration

__all__ = ["KeyRow", "add", "added", "freeze", "frozen", "rows", "thaw"]


def add(
    session: Session,
    symbol: str,
    interval: str,
    *,
    now: datetime,
    actor: str,
    hmac_key: bytes | None = None,
) -> list[ModelKey]:
    """Take a series in: its candles are kept up to date, its five keys may have models.

    Returns:
        The keys that are new; none where the series was added before: then nothing changes.

    Raises:
        KeyRejected: symbol or interval.
    """
    check_symbol(symbol)
    interval_duration(interval)
    values = [
        {"symbol": symbol, "interval": interval, "regime": regime, "added_at": now, "added_by": actor}
        for regime in MODEL_REGIMES
    ]
    statement = insert(KeyRow).values(values)
    new = set(
        session.scalars(
            statement.on_conflict_do_update(
                index_elements=["symbol", "interval", "regime"],
                set_={"added_at": statement.excluded.added_at, "added_by": statement.excluded.added_by},
                where=KeyRow.added_at.is_(None),  # one that was frozen before it was added has a row
            ).returning(KeyRow.regime)
        )
    )
    regimes = [regime for regime in MODEL_REGIMES if regime in new]
    if regimes:
        audit.append(
            session,
            action="key_add",
            actor=actor,
            subject=f"{symbol} {interval}",
            why="its candles are kept up to date and its models are trained",
            details={"regimes": regimes},
            now=now,
            hmac_key=hmac_key,
        )
    return [ModelKey(symbol, interval, regime) for regime in regimes]


def added(session: Session) -> list[tuple[str, str]]:
    """Every (symbol, interval) that was added, in order."""
    query = (
        sa.select(KeyRow.symbol, KeyRow.interval)
        .where(KeyRow.added_at.is_not(None))
        .distinct()
        .order_by(KeyRow.symbol, KeyRow.interval)
    )
    return [(symbol, interval) for symbol, interval in session.execute(query)]


def rows(session: Session) -> list[KeyRow]:
    """Everything that was said, by key."""
    return list(session.scalars(sa.select(KeyRow).order_by(KeyRow.symbol, KeyRow.interval, KeyRow.regime)))


def frozen(session: Session, key: ModelKey) -> KeyRow | None:
    """By whom and why the key is frozen; None where it is not.

    Who decides on it holds ``registry.lock_key`` first: freezing waits for that.
    """
    query = sa.select(KeyRow).where(*KeyRow.of_key(key), KeyRow.frozen_at.is_not(None))
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def freeze(
    session: Session, key: ModelKey, *, now: datetime, actor: str, why: str, hmac_key: bytes | None = None
) -> bool:
    """Leave the key's champion to people until it is thawed.

    Returns:
        False where it is frozen already: the first one's reason stays, and nothing changes.
    """
    lock_key(session, key)  # a promotion that is under way is done first
    if frozen(session, key) is not None:
        return False
    values = {"frozen_at": now, "frozen_by": actor, "frozen_why": why}
    session.execute(
        insert(KeyRow)
        .values(symbol=key.symbol, interval=key.interval, regime=key.regime, **values)
        .on_conflict_do_update(index_elements=["symbol", "interval", "regime"], set_=values)
    )
    audit.append(
        session,
        action="freeze",
        actor=actor,
        subject=str(key),
        why=why,
        details={},
        now=now,
        hmac_key=hmac_key,
    )
    return True


def thaw(
    session: Session, key: ModelKey, *, now: datetime, actor: str, why: str, hmac_key: bytes | None = None
) -> bool:
    """Let the system change the key's champion again; False where it is not frozen: nothing changes."""
    lock_key(session, key)
    row = frozen(session, key)
    if row is None:
        return False
    assert row.frozen_at is not None
    was = {"frozen_at": row.frozen_at.isoformat(), "frozen_by": row.frozen_by, "frozen_why": row.frozen_why}
    row.frozen_at = row.frozen_by = row.frozen_why = None
    session.flush()
    audit.append(
        session,
        action="thaw",
        actor=actor,
        subject=str(key),
        why=why,
        details=was,
        now=now,
        hmac_key=hmac_key,
    )
    return True
