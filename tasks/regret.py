"""The regret ledger: did a promotion pay? Held against the model it replaced, on the weeks after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy.orm import Session

from db import registry, shadows
from db import regret as stored
from db.final_words import GRACE
from db.regret import Promotion
from ml.config import LabelConfig
from ml.evaluation import BLOCK_HORIZONS
from ml.keys import ModelKey, interval_duration
from ml.paired import PairedOutcomes, Regret, regret
from tasks.base import Resources
from tasks.one_key import on_its_own

__all__ = ["SAMPLES", "RegretEntry", "horizon_of", "labels_of", "paired_outcomes", "regret_ledger", "settle"]

SAMPLES: Final = 1000
MOST_SHADOW_DAYS: Final = 365.0
"""Of the setting."""

log = structlog.get_logger(__name__)


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
    entries = [*_final(session, since, until, symbol), *_so_far(session, since, until, symbol)]
    return sorted(entries, key=lambda entry: (entry.promoted_at, entry.key), reverse=True)


def settle(resources: Resources) -> int:
    """Write the final word on every promotion that has ended without one; how many.

    It waits until its signals are scored and their outcomes known, for ``db.final_words.GRACE`` at most.
    A transaction each, under the key's lock: of two runs at once the second finds it written. One that
    cannot be judged is logged, and keeps no other from its turn.
    """
    settings, now = resources.settings, resources.clock.now()
    with resources.transaction() as session:
        open_ones = stored.promotions(session, now=now, shadow_days=settings.shadow_days)
    written = 0
    for one in open_ones:
        if one.ended is None:
            continue
        key = one.model.key
        with on_its_own("promotion_not_settled", key), resources.transaction() as session:
            registry.lock_key(session, key)
            again = stored.promotions(session, now=now, shadow_days=settings.shadow_days, of=one.model.id)
            for promotion in again:
                if promotion.ended is not None and not _is_waited_for(session, promotion, now):
                    _settle(session, promotion)
                    written += 1
    return written


def paired_outcomes(
    session: Session, new: registry.ModelRow, old: registry.ModelRow, *, since: datetime, until: datetime
) -> PairedOutcomes:
    """As ``db.shadows.paired``; empty where the two learned other barriers: a hit of one is none of the
    other's, and their Brier scores are of two questions."""
    if labels_of(new) != labels_of(old):
        since = until
    return shadows.paired(session, new.key, new.id, old.id, since=since, until=until)


def labels_of(model: registry.ModelRow) -> LabelConfig:
    """Barriers, horizon and costs of the outcomes that it learned from."""
    return LabelConfig.model_validate(model.config.get("labels", {}))


def horizon_of(model: registry.ModelRow) -> timedelta:
    """How long its outcomes take at most."""
    return labels_of(model).horizon_bars * interval_duration(model.interval)


def _is_waited_for(session: Session, promotion: Promotion, now: datetime) -> bool:
    """Whether a signal of its weeks is still to be scored, or its outcome to be found out."""
    new, old, since, until = promotion.model, promotion.replaced, promotion.promoted_at, promotion.until
    if now >= until + GRACE or labels_of(new) != labels_of(old):
        return False
    return shadows.has_open(session, new.id, since=since, until=until) or bool(
        shadows.to_score(session, new.key, old.id, since=since, until=until, has_champion=True, limit=1)
    )


def _settle(session: Session, promotion: Promotion) -> None:
    found = _judge(session, promotion, promotion.until)
    numbers = found.to_json()
    stored.record(session, promotion, numbers=numbers, rows=found.rows)
    log.info(
        "promotion_settled",
        model_key=str(promotion.model.key),
        model_version=promotion.model.version,
        replaced_version=promotion.replaced.version,
        verdict=found.verdict,
        ended=promotion.ended,
        rows=found.rows,
    )


def _judge(session: Session, promotion: Promotion, until: datetime) -> Regret:
    new, old = promotion.model, promotion.replaced
    found = paired_outcomes(session, new, old, since=promotion.promoted_at, until=until)
    return regret(found, block=BLOCK_HORIZONS * horizon_of(new), samples=SAMPLES, seed=new.id)


def _final(session: Session, since: datetime, until: datetime, symbol: str | None) -> Iterator[RegretEntry]:
    """Those that have had their final word by ``until``."""
    for row, new, old in stored.final_rows(session, since=since, until=until, symbol=symbol):
        promoted_at = datetime.fromisoformat(row.metrics["promoted_at"])
        yield RegretEntry(
            key=new.key,
            promoted_at=promoted_at,
            version=new.version,
            replaced_version=old.version,
            reason=stored.reason(session, new, promoted_at),
            verdict=row.metrics["verdict"],
            numbers=row.metrics,
            until=row.as_of,
            final=True,
            ended=row.metrics["ended"],
        )


def _so_far(session: Session, since: datetime, until: datetime, symbol: str | None) -> Iterator[RegretEntry]:
    """The others, as they look at ``until``."""
    for one in stored.promotions(session, now=until, shadow_days=MOST_SHADOW_DAYS):
        if not since <= one.promoted_at < until or symbol not in (None, one.model.symbol):
            continue
        known_until = min(one.until, until)
        found = _judge(session, one, known_until)
        yield RegretEntry(
            key=one.model.key,
            promoted_at=one.promoted_at,
            version=one.model.version,
            replaced_version=one.replaced.version,
            reason=stored.reason(session, one.model, one.promoted_at),
            verdict=found.verdict,
            numbers=found.to_json(),
            until=known_until,
            final=False,
            ended=None,
        )
