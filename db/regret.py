"""Promotions and what came of them: which are over, and the final word on each in the evaluation history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from db.base import Json
from db.drift_models import DriftAction
from db.final_words import GRACE, PROMOTED_AT, is_written
from db.models import AuditEntry, EvaluationRow, ModelRow, TrainingJob
from db.registry import ROLLED_BACK
from ml.keys import ModelKey

__all__ = ["Ended", "Promotion", "final_rows", "promotions", "reason", "record", "rollbacks"]

Ended = Literal["span", "replaced", "rolled_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A model that took a champion's place, and how long the two can be held against each other."""

    model: ModelRow
    replaced: ModelRow
    promoted_at: datetime
    until: datetime
    """The end of the shadow span, or of the model's reign where that came first."""
    ended: Ended | None
    """Why nothing more will be known; None: not yet."""


def promotions(
    session: Session, *, now: datetime, shadow_days: float, of: int | None = None
) -> list[Promotion]:
    """Promotions without a final row: every champion's, and those of the models before it, by model.

    A rollback is none: what it undid was the promotion, which ends with it.

    Args:
        session: the caller's.
        now: aware.
        shadow_days: so long the two can be held against each other.
        of: of this model only.
    """
    replaced = aliased(ModelRow)
    chain = _reigns(since=now - 2 * timedelta(days=shadow_days) - GRACE)
    query = (
        sa.select(ModelRow, replaced)
        .join(chain, chain.c.id == ModelRow.id)
        .join(replaced, replaced.id == ModelRow.replaces_id)
        .where(~replaced.details.has_key(ROLLED_BACK), ~is_written(ModelRow, replaced))
        .order_by(ModelRow.id)
    )
    if of is not None:
        query = query.where(ModelRow.id == of)
    span = timedelta(days=shadow_days)
    return [_promotion(model, other, now, span) for model, other in session.execute(query)]


def record(session: Session, promotion: Promotion, *, numbers: Json, rows: int) -> None:
    """Keep the final word on a promotion, and tell the drift action that led to it.

    The caller holds the key's lock and has asked ``promotions`` under it: there is one word on each.

    Args:
        session: the caller's.
        promotion: that has ended.
        numbers: plain values, with the verdict.
        rows: signals that both models answered.
    """
    model = promotion.model
    at = promotion.promoted_at.astimezone(UTC).isoformat()
    metrics = numbers | {PROMOTED_AT: at, "ended": promotion.ended}
    session.add(
        EvaluationRow(
            symbol=model.symbol,
            interval=model.interval,
            regime=model.regime,
            model_id=promotion.replaced.id,
            champion_id=model.id,
            kind="shadow",
            as_of=promotion.until,
            rows=rows,
            metrics=metrics,
        )
    )
    actions = session.scalars(
        sa.select(DriftAction)
        .where(*DriftAction.of_key(model.key), DriftAction.outcome["model_id"].as_integer() == model.id)
        .with_for_update()
    )
    for action in actions:
        action.outcome = (action.outcome or {}) | {"regret": metrics}
    session.flush()


def final_rows(
    session: Session, *, since: datetime, until: datetime, symbol: str | None = None
) -> Sequence[tuple[EvaluationRow, ModelRow, ModelRow]]:
    """Final words on promotions of a span, each with the model and the one it replaced."""
    model, replaced = aliased(ModelRow), aliased(ModelRow)
    at = EvaluationRow.metrics[PROMOTED_AT].astext.cast(sa.TIMESTAMP(timezone=True))
    query = (
        sa.select(EvaluationRow, model, replaced)
        .join(model, model.id == EvaluationRow.champion_id)
        .join(replaced, replaced.id == EvaluationRow.model_id)
        .where(EvaluationRow.kind == "shadow", EvaluationRow.as_of >= since, at >= since, at < until)
    )
    if symbol is not None:
        query = query.where(EvaluationRow.symbol == symbol)
    return [(row, new, old) for row, new, old in session.execute(query)]


def reason(session: Session, model: ModelRow, promoted_at: datetime) -> str:
    """Why it was trained, or ``force`` where a person promoted it against the gates."""
    forced = session.scalar(
        sa.select(AuditEntry.id)
        .where(
            AuditEntry.subject == str(model.key),
            AuditEntry.action == "force",
            AuditEntry.at == promoted_at,
            AuditEntry.details["model_id"].as_integer() == model.id,
        )
        .limit(1)
    )
    if forced is not None:
        return "force"
    job = None if model.job_id is None else session.get(TrainingJob, model.job_id)
    return "manual" if job is None else job.reason


def rollbacks(session: Session, key: ModelKey, *, actor: str, since: datetime) -> list[AuditEntry]:
    """Rollbacks of a key by one actor after ``since``, and after it was last thawed; the newest first."""
    entries = (
        sa.select(AuditEntry)
        .where(
            AuditEntry.subject == str(key),
            AuditEntry.action.in_(("rollback", "thaw")),
            AuditEntry.at > since,
        )
        .order_by(AuditEntry.id.desc())
    )
    found = []
    for entry in session.scalars(entries):
        if entry.action == "thaw":
            break
        if entry.actor == actor:
            found.append(entry)
    return found


def _reigns(since: datetime) -> sa.CTE:
    """Ids of the champions and of those before them, back to the first whose reign ended before ``since``."""
    chain = (
        sa.select(ModelRow.id, ModelRow.replaces_id)
        .where(ModelRow.state == "champion", ModelRow.replaces_id.is_not(None))
        .cte("reigns", recursive=True)
    )
    before = (
        sa.select(ModelRow.id, ModelRow.replaces_id)
        .join(chain, chain.c.replaces_id == ModelRow.id)
        .where(ModelRow.replaces_id.is_not(None), ModelRow.archived_at > since)
    )
    return chain.union(before)  # not union_all: two that took turns would go round for ever


def _promotion(model: ModelRow, replaced: ModelRow, now: datetime, span: timedelta) -> Promotion:
    assert model.promoted_at is not None
    until: datetime = model.promoted_at + span
    ended: Ended | None = None
    if model.archived_at is not None and model.archived_at < until:
        until = model.archived_at
        ended = "rolled_back" if ROLLED_BACK in model.details else "replaced"
    elif until <= now:
        ended = "span"
    return Promotion(
        model=model,
        replaced=replaced,
        promoted_at=model.promoted_at,
        until=until,
        ended=ended,
    )
