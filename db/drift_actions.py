"""What was done about drift: one open action a key, and what came of it.

``due_at`` is when a retraining is to begin; once it has begun, when it did. ``snoozed_until`` is set with
the end: until then the key's alerts start nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.base import Json
from db.drift_models import SEVERITIES, DriftAction, DriftAlert
from db.models import TrainingJob
from ml.keys import ModelKey

__all__ = [
    "NO_ALERT",
    "RETRAININGS",
    "DriftAction",
    "actions",
    "attach_job",
    "begun_since",
    "close_action",
    "follow_job",
    "get_action",
    "job_of_key",
    "note",
    "open_action",
    "open_actions",
    "put_off",
    "snoozed_until",
    "start_action",
]

NO_ALERT: Final = UUID(int=0)
"""``alert_id`` of what somebody began by hand for a key that was never checked."""
RETRAININGS: Final = ("retrain_now", "schedule_retraining")

Retraining = Literal["retrain_now", "schedule_retraining"]


def start_action(
    session: Session,
    *,
    key: ModelKey,
    model_id: int,
    alert_id: UUID,
    alert_as_of: datetime,
    severity: str,
    action: Retraining,
    now: datetime,
    due_at: datetime,
) -> DriftAction | None:
    """Open an action; None where the key has one open, and nothing was changed.

    Args:
        session: the caller's.
        key: whose champion drifted.
        model_id: the champion.
        alert_id: of the check that asks for it; ``NO_ALERT`` where none does.
        alert_as_of: of that check.
        severity: of that check.
        action: what is to be done.
        now: the clock's.
        due_at: when.
    """
    added = session.execute(
        insert(DriftAction)
        .values(
            **asdict(key),
            model_id=model_id,
            alert_id=alert_id,
            alert_as_of=alert_as_of,
            severity=severity,
            action=action,
            due_at=due_at,
            as_of=now,
        )
        .on_conflict_do_nothing()
        .returning(DriftAction.id)
    )
    found = added.scalar_one_or_none()
    return None if found is None else session.get_one(DriftAction, found)


def get_action(session: Session, action_id: int) -> DriftAction | None:
    """The action as it is now, locked to the end of the transaction."""
    query = sa.select(DriftAction).where(DriftAction.id == action_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def open_action(session: Session, key: ModelKey) -> DriftAction | None:
    """What is being done about the key, locked to the end of the transaction; None where nothing is."""
    query = sa.select(DriftAction).where(*DriftAction.of_key(key), DriftAction.state == "open")
    query = query.with_for_update().execution_options(populate_existing=True)
    return session.scalars(query).one_or_none()


def open_actions(session: Session) -> Sequence[DriftAction]:
    """Every open retraining, the worst first, of these the one due first."""
    severity = sa.case({name: rank for rank, name in enumerate(SEVERITIES)}, value=DriftAction.severity)
    query = sa.select(DriftAction).where(DriftAction.state == "open", DriftAction.action.in_(RETRAININGS))
    return session.scalars(query.order_by(severity.desc(), DriftAction.due_at, DriftAction.id)).all()


def actions(
    session: Session,
    *,
    key: ModelKey | None = None,
    state: str | None = None,
    since: datetime | None = None,
    limit: int,
) -> Sequence[DriftAction]:
    """The newest ``limit`` actions, newest first."""
    query = sa.select(DriftAction).order_by(DriftAction.as_of.desc(), DriftAction.id.desc()).limit(limit)
    if key is not None:
        query = query.where(*DriftAction.of_key(key))
    if state is not None:
        query = query.where(DriftAction.state == state)
    if since is not None:
        query = query.where(DriftAction.as_of >= since)
    return session.scalars(query).all()


def attach_job(
    session: Session,
    action: DriftAction,
    *,
    job_id: str,
    now: datetime,
    adopted: bool,
    by_hand: bool = False,
) -> None:
    """The retraining has begun: its own job, or one that trains the key anyway."""
    action.job_id, action.due_at = job_id, now
    note(session, action, {"adopted": adopted, "by_hand": by_hand or None, "waits": None})


def follow_job(session: Session, action: DriftAction, job_id: str) -> None:
    """Another job did the work of the action's own: drift began none."""
    action.job_id = job_id
    note(session, action, {"adopted": True})


def put_off(session: Session, action: DriftAction, *, until: datetime, why: str) -> None:
    """Not now: due at ``until``, and the action says why."""
    action.due_at = until
    note(session, action, {"waits": why})


def close_action(
    session: Session,
    action: DriftAction,
    *,
    state: Literal["done", "cancelled", "snoozed"],
    now: datetime,
    snoozed_until: datetime | None,
    outcome: Json,
) -> None:
    """End an action with what came of it; ``outcome`` is added to what it says already."""
    action.state, action.closed_at, action.snoozed_until = state, now, snoozed_until
    note(session, action, {**outcome, "waits": None})


def note(session: Session, action: DriftAction, words: Json) -> None:
    """Add to what an action says; a key that is there is replaced, or removed by None."""
    kept: dict[str, Any] = {**(action.outcome or {}), **words}
    action.outcome = {name: value for name, value in kept.items() if value is not None}
    session.flush()


def snoozed_until(session: Session, key: ModelKey, now: datetime) -> datetime | None:
    """Until when the key's alerts start nothing; None where they may."""
    query = sa.select(sa.func.max(DriftAction.snoozed_until)).where(
        *DriftAction.of_key(key), DriftAction.state != "open", DriftAction.snoozed_until > now
    )
    return session.scalar(query)


def begun_since(session: Session, since: datetime) -> list[datetime]:
    """When each retraining of drift's own began, of all keys, after ``since``; ascending.

    A job that trained the key anyway is none of them, nor is one that somebody began by hand.
    """
    query = (
        sa.select(DriftAction.due_at)
        .where(
            DriftAction.action.in_(RETRAININGS),
            DriftAction.job_id.is_not(None),
            DriftAction.due_at > since,
            DriftAction.outcome["adopted"].as_boolean().is_not(True),
            DriftAction.outcome["by_hand"].as_boolean().is_not(True),
        )
        .order_by(DriftAction.due_at)
    )
    return [moment for moment in session.scalars(query) if moment is not None]


def job_of_key(session: Session, action: DriftAction, *, ended: bool) -> TrainingJob | None:
    """A job that trains the action's key anyway: running, else queued, else, if ``ended``, one that did so.

    That is one that ended well since the alert. Jobs keep the server's time, and so does the alert: when it
    was recorded, not ``as_of``.
    """
    alerted = (
        sa.select(DriftAlert.recorded_at)
        .where(DriftAlert.id == action.alert_id, DriftAlert.as_of == action.alert_as_of)
        .scalar_subquery()
    )
    since = TrainingJob.state.in_(("succeeded", "refused")) & (TrainingJob.finished_at > alerted)
    trains = sa.or_(TrainingJob.state.in_(("running", "queued")), since if ended else sa.false())
    order = sa.case({"running": 0, "queued": 1}, value=TrainingJob.state, else_=2)
    query = (
        sa.select(TrainingJob)
        .where(*TrainingJob.of_key(action.key), trains)
        .order_by(order, TrainingJob.queued_at.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()
