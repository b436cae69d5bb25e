"""The limits of drift scores, key by key, with their history.

A row holds for what it names: a symbol, interval and regime, each of which may be ``ANY``. Of the rows that
fit a key the most specific one holds: one that names the symbol before one that does not, then the
interval, then the regime. Where none fits, the defaults of ``SeverityLimits`` do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db import audit
from db.drift_models import ANY, DriftThreshold
from db.locks import lock
from ml.alarms import SeverityLimits
from ml.errors import ConfigRejected
from ml.keys import ModelKey, check_regime, check_symbol, interval_duration

__all__ = [
    "ANY",
    "DriftThreshold",
    "Scope",
    "history",
    "in_force",
    "limits_of",
    "set_threshold",
    "thresholds",
]

WAITED = timedelta(minutes=1)
"""A row that begins so soon after now was written while the caller waited for the lock."""
LEVELS = ("low", "medium", "high", "critical")


@dataclass(frozen=True, slots=True)
class Scope:
    """What limits are set for; each part may be ``ANY``.

    Raises:
        KeyRejected: a part is neither that nor of the vocabulary of model keys.
    """

    symbol: str = ANY
    interval: str = ANY
    regime: str = ANY

    def __post_init__(self) -> None:
        if self.symbol != ANY:
            check_symbol(self.symbol)
        if self.interval != ANY:
            interval_duration(self.interval)
        if self.regime != ANY:
            check_regime(self.regime)

    def __str__(self) -> str:
        return f"{self.symbol} {self.interval} {self.regime}"

    @classmethod
    def of(cls, key: ModelKey) -> Self:
        """This key and no other."""
        return cls(key.symbol, key.interval, key.regime)


def thresholds(session: Session, key: ModelKey, now: datetime) -> SeverityLimits:
    """The limits that hold for a key at ``now`` (aware)."""
    parts = ((DriftThreshold.symbol, key.symbol), (DriftThreshold.interval, key.interval))
    query = (
        sa.select(DriftThreshold)
        .where(
            *(column.in_((value, ANY)) for column, value in (*parts, (DriftThreshold.regime, key.regime))),
            DriftThreshold.valid_from <= now,
            sa.or_(DriftThreshold.valid_until.is_(None), DriftThreshold.valid_until > now),
        )
        .order_by(DriftThreshold.symbol == ANY, DriftThreshold.interval == ANY, DriftThreshold.regime == ANY)
        .limit(1)
    )
    found = session.scalars(query).one_or_none()
    return SeverityLimits() if found is None else limits_of(found)


def in_force(session: Session, scope: Scope, now: datetime) -> SeverityLimits:
    """The limits that hold at ``now`` for what the scope names, as its most specific row has them."""
    parts = ("symbol", "interval", "regime")
    # In a replay a row that was written by the wall's clock may not hold yet.
    rows = [
        row
        for row in history(session, current=True)
        if row.valid_from <= now and all(getattr(row, part) in (ANY, getattr(scope, part)) for part in parts)
    ]
    rows.sort(key=lambda row: [getattr(row, part) == ANY for part in parts])
    return limits_of(rows[0]) if rows else SeverityLimits()


def set_threshold(
    session: Session,
    scope: Scope,
    limits: SeverityLimits | Mapping[str, float] | None,
    *,
    now: datetime,
    actor: str,
    why: str,
    hmac_key: bytes | None = None,
) -> DriftThreshold | None:
    """Set limits from ``now`` on; the row that held before ends then and stays as history. Audited.

    Setting what holds already changes nothing.

    Args:
        session: the caller's; nothing holds before its commit.
        scope: for whom.
        limits: the new ones, or by name those that change, the others staying as they hold when it is this
            one's turn; None ends the scope's own, and what is less specific holds again.
        now: the clock's.
        actor: who decided.
        why: in words.
        hmac_key: signs the audit row.

    Returns:
        The scope's row that holds now; None where it has none.

    Raises:
        ConfigRejected: a limit is out of its range, or the severities are not in ascending order.
    """
    lock(session, "thresholds", str(scope))
    before = _current(session, scope)
    if before is not None and now < before.valid_from <= now + WAITED:
        now = before.valid_from
    if isinstance(limits, Mapping):
        limits = replace(in_force(session, scope, now), **limits)
    if limits is not None:
        _check(limits)
    # A replay's clock may stand before a row that was written by the wall's: that one does not hold yet.
    held = None if before is None or before.valid_from > now else limits_of(before)
    if held == limits and (before is None or limits is not None):
        return before
    if before is not None:
        before.valid_until = now
        session.flush()  # first: the unique index allows no two current rows, not even for a moment
    row = None if limits is None else _row(scope, limits, now, actor, why)
    if row is not None:
        session.add(row)
        session.flush()
    audit.append(
        session,
        action="threshold",
        actor=actor,
        subject=str(scope),
        why=why,
        details={
            "before": None if before is None else asdict(limits_of(before)),
            "after": None if limits is None else asdict(limits),
        },
        now=now,
        hmac_key=hmac_key,
    )
    return row


def history(session: Session, *, current: bool = False) -> Sequence[DriftThreshold]:
    """Every row ever set, or those without an end: by symbol, interval and regime, newest first."""
    parts = (DriftThreshold.symbol, DriftThreshold.interval, DriftThreshold.regime)
    query = sa.select(DriftThreshold).order_by(*parts, DriftThreshold.id.desc())
    if current:
        query = query.where(DriftThreshold.valid_until.is_(None))
    return session.scalars(query).all()


def limits_of(row: DriftThreshold) -> SeverityLimits:
    """The limits that a row holds."""
    severities = {level: getattr(row, level) for level in LEVELS}
    return SeverityLimits(ks=row.ks, psi=row.population_stability_index, **severities)


def _row(scope: Scope, limits: SeverityLimits, now: datetime, actor: str, why: str) -> DriftThreshold:
    values = asdict(limits)
    psi = values.pop("psi")
    return DriftThreshold(
        **asdict(scope),
        **values,
        population_stability_index=psi,
        valid_from=now,
        changed_by=actor,
        why=why,
    )


def _current(session: Session, scope: Scope) -> DriftThreshold | None:
    query = sa.select(DriftThreshold).where(
        DriftThreshold.symbol == scope.symbol,
        DriftThreshold.interval == scope.interval,
        DriftThreshold.regime == scope.regime,
        DriftThreshold.valid_until.is_(None),
    )
    return session.scalars(query).one_or_none()


def _check(limits: SeverityLimits) -> None:
    if not 0 < limits.ks <= 1:
        raise ConfigRejected("ks", limits.ks, "over 0 and at most 1")
    if not 0 < limits.psi < math.inf:
        raise ConfigRejected("psi", limits.psi, "over 0, and finite")
    floor, name_below = 0.0, "0"
    for level in LEVELS:
        value = getattr(limits, level)
        if not floor < value < math.inf:
            raise ConfigRejected(level, value, f"over {name_below} ({floor:g}), and finite")
        floor, name_below = value, level
