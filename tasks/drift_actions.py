"""tasks.run_drift_actions: from an alert to a retraining, and to what came of it.

An action and its training job are one transaction, and the job's message follows its commit: one that is lost
is sent by ``tasks.sweep_jobs``. A key has one open action; after its end the key's alerts start nothing for
``DriftConfig.cooldown_days``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import celery
import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import drift, drift_actions, jobs, registry
from db.drift_actions import NO_ALERT, DriftAction
from db.locks import lock
from db.models import FINISHED_STATES, TrainingJob
from ml.config import TrainingConfig
from ml.errors import InputRejected
from ml.keys import ModelKey, check_note
from runtime.clock import WallClock
from tasks.base import Resources, Task
from tasks.one_key import on_its_own
from tasks.retraining import DAY, Retraining, action_json, adopt, begin, record_begin, send

__all__ = ["ACTED_ON", "Alarm", "act", "retrain_now", "run_drift_actions", "run_due"]

ACTED_ON: Final = ("high", "critical")
"""Severities that start something."""
AFTER_SLOT: Final = timedelta(minutes=2)
"""By then beat's own job of the slot is there, and is waited for instead of training twice."""
FAILED_AGAIN_AFTER: Final = timedelta(days=1)
"""A failed training says nothing of the market: it is tried again before a cooldown, but not hourly."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """The worst alert of one check."""

    key: ModelKey
    model_id: int
    alert_id: UUID
    as_of: datetime
    severity: str


def act(
    session: Session, resources: Resources, alarm: Alarm, *, slot: datetime | None, now: datetime
) -> tuple[DriftAction, Retraining | None]:
    """Do about an alert what its severity asks for: critical retrains at once, high at the next slot.

    Where the key has an action open that one stays; but a critical alert takes the place of a retraining that
    is only scheduled.

    Args:
        session: the caller's; it holds the key's ``drift`` lock.
        resources: settings.
        alarm: high or critical.
        slot: when the key's next training is scheduled, by the wall; None where it has none.
        now: the clock's.

    Returns:
        The key's open action; and the retraining to send after the commit, if one was begun.
    """
    critical = alarm.severity == "critical"
    before = drift_actions.open_action(session, alarm.key)
    if before is not None:
        if not critical or before.action != "schedule_retraining" or before.job_id is not None:
            return before, None
        escalated = {
            "result": "escalated",
            "says": f"alert {alarm.alert_id} is critical: not scheduled, but now",
        }
        drift_actions.close_action(
            session, before, state="cancelled", now=now, snoozed_until=None, outcome=escalated
        )
    action = drift_actions.start_action(
        session,
        key=alarm.key,
        model_id=alarm.model_id,
        alert_id=alarm.alert_id,
        alert_as_of=alarm.as_of,
        severity=alarm.severity,
        action="retrain_now" if critical else "schedule_retraining",
        now=now,
        due_at=now if critical else _due_at(slot, now),
    )
    assert action is not None  # the lock is held, and none is open
    # Before the audit row: its lock is the last to be taken, and begin may put the action off.
    retraining = begin(session, resources, action, now) if critical else None
    why = f"{alarm.severity} drift, alert {alarm.alert_id}"
    record_begin(session, resources.settings, action, actor="tasks.check_drift", why=why, now=now)
    return action, retraining


def _due_at(slot: datetime | None, now: datetime) -> datetime:
    """Just after the slot if that is within 24 hours, else then. A replay's clock is as far off."""
    wait = None if slot is None else slot - WallClock().now()
    return now + (DAY if wait is None or not timedelta(0) < wait <= DAY else wait + AFTER_SLOT)


@shared_task(base=Task, bind=True, name="tasks.run_drift_actions", ignore_result=True)
def run_drift_actions(self: Task) -> dict[str, list[str]]:
    """Begin the retrainings that are due, and close those that ended, with what came of them.

    Returns:
        As ``run_due``.
    """
    return run_due(self.resources, partial(send, self.app, self.resources))


def run_due(resources: Resources, tell: Callable[[Retraining], None]) -> dict[str, list[str]]:
    """Take every open action a step on, in a transaction each. A second run finds nothing to do.

    An action that cannot be taken on is logged, and keeps no other from its turn.

    Args:
        resources: of this process.
        tell: sends a retraining's message, each after its own commit: what stops a later one delays none.

    Returns:
        The keys by what happened: ``begun``, ``adopted``, ``put_off``, ``closed``, ``cancelled``.
    """
    now = resources.clock.now()
    with resources.transaction() as session:
        waiting = [(action.id, action.key) for action in drift_actions.open_actions(session)]
    done: dict[str, list[str]] = {}
    for action_id, key in waiting:
        with on_its_own("drift_action_failed", key, action_id=action_id):
            with resources.transaction() as session:
                step, retraining = _locked_step(session, resources, action_id, key, now)
            if retraining is not None:
                tell(retraining)
            if step is not None:
                done.setdefault(step, []).append(str(key))
                log.info("drift_action", model_key=str(key), action_id=action_id, step=step)
    return done


def _locked_step(
    session: Session, resources: Resources, action_id: int, key: ModelKey, now: datetime
) -> tuple[str | None, Retraining | None]:
    lock(session, "drift", str(key))
    action = drift_actions.get_action(session, action_id)
    if action is None or action.state != "open":
        return None, None
    return _step(session, resources, action, now)


def _step(
    session: Session, resources: Resources, action: DriftAction, now: datetime
) -> tuple[str | None, Retraining | None]:
    step = None
    if action.job_id is None:
        if adopt(session, action, now):
            step = "adopted"
        elif action.due_at is not None and action.due_at > now:
            return None, None
        elif needless := _needless(session, action):
            outcome = {"result": "cancelled", "says": needless}
            drift_actions.close_action(
                session, action, state="cancelled", now=now, snoozed_until=None, outcome=outcome
            )
            return "cancelled", None
        else:
            retraining = begin(session, resources, action, now)
            return "put_off" if retraining is None else "begun", retraining
    job = _job_of(session, action)
    if job.state not in FINISHED_STATES:
        return step, None
    _finish(session, resources, action, job, now)
    return "closed", None


def _needless(session: Session, action: DriftAction) -> str | None:
    """Why the retraining is not wanted any more, or None."""
    champion = registry.champion(session, action.key)
    if champion is None or champion.id != action.model_id:
        version = "none" if champion is None else f"version {champion.version}"
        return f"the champion that the alert was about is {version} now"
    newest = drift.newest_check(session, action.key)
    if not newest or newest[0].as_of <= action.alert_as_of:
        return None  # nobody has looked again
    if any(alert.severity in ACTED_ON for alert in newest):
        return None
    worst = newest[0]
    return f"the alert fell silent: at {worst.as_of:%Y-%m-%d %H:%M} the score was {worst.drift_score:.3f}"


def _job_of(session: Session, action: DriftAction) -> TrainingJob:
    """The action's job, or the one that did its work where it was superseded."""
    assert action.job_id is not None
    job = jobs.get(session, action.job_id)
    assert job is not None
    while job.state == "superseded" and job.superseded_by is not None:
        follower = jobs.get(session, job.superseded_by)
        assert follower is not None
        job = follower
    if job.id != action.job_id:
        drift_actions.follow_job(session, action, job.id)
    return job


def _finish(
    session: Session, resources: Resources, action: DriftAction, job: TrainingJob, now: datetime
) -> None:
    """Close an action by its job's outcome; where no better model came of it, its alerts are snoozed."""
    cooldown = timedelta(days=TrainingConfig.from_mapping(resources.settings.training).drift.cooldown_days)
    found = job.outcome or {}
    result = str(found.get("result", job.state))
    outcome: dict[str, Any] = {"result": result, "job_id": job.id}
    outcome |= {name: found[name] for name in ("model_id", "version", "refused", "detail") if name in found}
    outcome["reasons"] = list(found.get("decision", {}).get("reasons", []))
    if (
        result == "unchanged"
        and found.get("model_state") == "champion"
        and found["model_id"] != action.model_id
    ):
        result = outcome["result"] = "promoted"  # by the job that trained the same a moment before
    snoozes = result in ("rejected", "unchanged", "refused")
    until = now + (min(cooldown, FAILED_AGAIN_AFTER) if result == "failed" else cooldown)
    outcome["says"] = (
        f"{_words(result, outcome)}; until {until:%Y-%m-%d %H:%M} alerts of the key start nothing"
    )
    drift_actions.close_action(
        session, action, state="snoozed" if snoozes else "done", now=now, snoozed_until=until, outcome=outcome
    )


def _words(result: str, outcome: dict[str, Any]) -> str:
    version = outcome.get("version")
    match result:
        case "promoted":
            return f"version {version} took the champion's place"
        case "rejected":
            return f"version {version} was rejected: {'; '.join(outcome['reasons'])}"
        case "unchanged":
            return f"the same candles and options made version {version} again"
        case "refused":
            return f"the data carry no model: {outcome.get('refused')}: {outcome.get('detail')}"
        case "failed":
            return f"the training failed: {outcome.get('detail')}"
        case _:
            return f"version {version}: {result}"


def retrain_now(
    resources: Resources, key: ModelKey, *, actor: str, reason: str, app: celery.Celery | None = None
) -> dict[str, Any]:
    """Retrain because somebody says so: without waiting for a slot, a cooldown or the budget. Audited.

    What the key has open already is used: a retraining that waits begins now, one that runs is all there is.

    Args:
        resources: this process's database, clock and settings.
        key: whose champion.
        actor: who asks, such as ``cli:ana``.
        reason: why, in words.
        app: sends the message; by default Celery's current application.

    Returns:
        ``action`` as ``action_json``; ``began`` is False where a retraining runs already.

    Raises:
        InputRejected: the key has no champion, or the reason is no short printable text.
    """
    check_note("reason", reason)
    now = resources.clock.now()
    with resources.transaction() as session:
        lock(session, "drift", str(key))
        champion = registry.champion(session, key)
        if champion is None:
            raise InputRejected(
                "key", str(key), "a key with a champion", "`alphaplus train` makes a first one"
            )
        action = drift_actions.open_action(session, key) or _by_hand(session, key, champion.id, now)
        began = action.job_id is None
        retraining = begin(session, resources, action, now, by_hand=True) if began else None
        if began:
            record_begin(session, resources.settings, action, actor=actor, why=reason, now=now)
        described = action_json(action)
    if retraining is not None:
        send(celery.current_app if app is None else app, resources, retraining)
    return {"began": began, "action": described}


def _by_hand(session: Session, key: ModelKey, model_id: int, now: datetime) -> DriftAction:
    """An action about the key's newest check, or about none."""
    newest = next((alert for alert in drift.newest_check(session, key) if alert.model_id == model_id), None)
    action = drift_actions.start_action(
        session,
        key=key,
        model_id=model_id,
        alert_id=NO_ALERT if newest is None else newest.id,
        alert_as_of=now if newest is None else newest.as_of,
        severity="none" if newest is None else newest.severity,
        action="retrain_now",
        now=now,
        due_at=now,
    )
    assert action is not None  # the lock is held, and none is open
    return action
