"""Drift's retrainings: begun by a job of their own or one that trains the key anyway, within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import celery
import structlog
from sqlalchemy.orm import Session

from db import audit, drift_actions, jobs
from db.drift_actions import NO_ALERT, DriftAction
from db.locks import lock
from db.models import TrainingJob
from runtime.clock import data_cut
from runtime.settings import Settings
from tasks.base import BROKER_ERRORS, Resources

__all__ = ["DAY", "Retraining", "action_json", "adopt", "begin", "record_begin", "send"]

DAY: Final = timedelta(hours=24)
"""The budget is of so long, and a scheduled retraining waits no longer."""
LOW_PRIORITY: Final = 9
"""Of Celery on Redis, where 0 comes first and is what a message has by default."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retraining:
    """A job whose message is to be sent after the commit."""

    job: TrainingJob
    low_priority: bool


def begin(
    session: Session, resources: Resources, action: DriftAction, now: datetime, *, by_hand: bool = False
) -> Retraining | None:
    """Train now: by a job that trains the key anyway, or by a new one; later where the budget is spent.

    What is begun ``by_hand`` neither waits for the budget nor takes from it.
    """
    if adopt(session, action, now, ended=not by_hand):
        return None
    # All keys' budget is counted by one at a time.
    lock(session, "drift-budget")
    free_at = None if by_hand else _budget_free_at(session, resources.settings, now)
    if free_at is not None:
        limit = resources.settings.drift_retrainings_per_day
        why = f"{limit} drift retrainings began in the last 24 hours (ALPHAPLUS_DRIFT_RETRAININGS_PER_DAY)"
        drift_actions.put_off(session, action, until=free_at, why=why)
        log.warning("drift_retraining_waits", model_key=str(action.key), until=free_at.isoformat(), why=why)
        return None
    job_id = str(uuid4())
    jobs.enqueue(
        session,
        job_id=job_id,
        key=action.key,
        reason="drift",
        requested_by="an operator" if action.alert_id == NO_ALERT else f"alert {action.alert_id}",
        as_of=data_cut(now, hour=resources.settings.data_cut_hour),
    )
    drift_actions.attach_job(session, action, job_id=job_id, now=now, adopted=False, by_hand=by_hand)
    job = jobs.get(session, job_id)
    assert job is not None
    # What somebody waits for comes first, though it was scheduled before.
    return Retraining(job, low_priority=action.action == "schedule_retraining" and not by_hand)


def adopt(session: Session, action: DriftAction, now: datetime, *, ended: bool = True) -> bool:
    """Whether another job trains the key anyway; the action waits for that one."""
    job = drift_actions.job_of_key(session, action, ended=ended)
    if job is None:
        return False
    drift_actions.attach_job(session, action, job_id=job.id, now=now, adopted=True)
    return True


def _budget_free_at(session: Session, settings: Settings, now: datetime) -> datetime | None:
    """When the next retraining may begin; None: now."""
    begun = drift_actions.begun_since(session, now - DAY)
    over = len(begun) - settings.drift_retrainings_per_day
    return begun[over] + DAY if over >= 0 else None


def send(app: celery.Celery, resources: Resources, retraining: Retraining) -> None:
    """Send a job's message, after its commit. Where the broker is away the sweep does, as soon as it can."""
    job = retraining.job
    arguments = [job.symbol, job.regime, job.interval, job.reason, job.requested_by]
    options = {"priority": LOW_PRIORITY} if retraining.low_priority else {}
    try:
        app.send_task("tasks.train", args=arguments, task_id=job.id, **options)
    except BROKER_ERRORS as error:
        log.warning("job_not_sent", job_id=job.id, model_key=str(job.key), error=str(error))
        with resources.transaction() as session:
            jobs.mark_unsent(session, [job.id])


def action_json(action: DriftAction) -> dict[str, Any]:
    """An action as plain values."""
    times = ("due_at", "as_of", "closed_at", "snoozed_until")
    return {
        "id": action.id,
        "key": str(action.key),
        "action": action.action,
        "state": action.state,
        "severity": action.severity,
        "alert_id": str(action.alert_id),
        "job_id": action.job_id,
        **{name: moment and moment.isoformat() for name in times for moment in [getattr(action, name)]},
        "outcome": action.outcome,
    }


def record_begin(
    session: Session, settings: Settings, action: DriftAction, *, actor: str, why: str, now: datetime
) -> None:
    audit.append(
        session,
        action="drift_action",
        actor=actor,
        subject=str(action.key),
        why=why,
        details={
            "action_id": action.id,
            "action": action.action,
            "alert_id": str(action.alert_id),
            "severity": action.severity,
            "model_id": action.model_id,
            "due_at": action.due_at and action.due_at.isoformat(),
        },
        now=now,
        hmac_key=settings.audit_key,
    )
