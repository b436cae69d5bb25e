"""The regret ledger: did a promotion pay? Held against the model it replaced, on the weeks after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ml.keys import ModelKey

__all__ = ["RegretEntry", "regret_ledger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretEntry:
    """One promotion, and what came of it."""

    key: ModelKey
    promoted_at: datetime
    version: int
    """Of the model that was promoted."""
    replaced_version: int
    reason: str
    """Of the training: ``drift``, ``schedule``, ``manual``; ``force`` where a person insisted."""
    verdict: str
    """``paid``, ``did_not_pay`` or ``not_known``."""
    numbers: dict[str, Any]
    """As ``ml.paired.Regret.to_json``."""
    until: datetime
    """What was known then is in the numbers."""
    final: bool
    """False while the replaced model still answers in shadow: the numbers will change."""
    ended: str | None
    """Why it is final: ``span`` (its days are over), ``replaced`` (by a later champion), ``rolled_back``."""


def regret_ledger(
    session: Session, *, since: datetime, until: datetime, symbol: str | None = None
) -> list[RegretEntry]:
    """Every promotion of a span that took another champion's place, by its time, newest first.

    Args:
        session: the caller's; nothing is written.
        since: of ``promoted_at``, included; aware.
        until: of ``promoted_at``, excluded, and of what is known; aware.
        symbol: of its keys only.
    """
    raise NotImplementedError
