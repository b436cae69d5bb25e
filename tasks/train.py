"""tasks.train: one job, from its message to its outcome."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from celery import shared_task
from celery.exceptions import Ignore
from sqlalchemy.orm import Session

from db import jobs
from ml.config import TrainingConfig
from ml.errors import InputRejected, TrainingRefused
from ml.keys import ModelKey, check_note
from runtime.clock import data_cut
from runtime.settings import Settings
from tasks.base import Resources, Task
from tasks.champions import announce_champion
from tasks.lease import Lease
from tasks.run import Run

__all__ = ["TrainingCall", "record_queued", "train", "training_call"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingCall:
    """The arguments of tasks.train, checked."""

    key: ModelKey
    reason: str
    requested_by: str


def training_call(
    settings: Settings,
    symbol: str,
    regime: str,
    interval: str | None = None,
    reason: str = "manual",
    requested_by: str = "",
) -> TrainingCall:
    """Check a call as the worker and whoever sends it do. Raises InputRejected."""
    key = ModelKey(symbol, settings.default_interval if interval is None else interval, regime)
    return TrainingCall(key, check_note("reason", reason), check_note("requested_by", requested_by))


@shared_task(base=Task, bind=True, name="tasks.train", max_retries=None)
def train(
    self: Task,
    symbol: str,
    regime: str,
    interval: str | None = None,
    reason: str = "manual",
    requested_by: str = "",
) -> dict[str, Any]:
    """Train a challenger for (symbol, interval, regime) and promote it if it passes every gate.

    The job's id is the task's id, so a second delivery of the message finds what the first one did. An
    outage is waited out without an end: a job is never given up because of one.

    Returns:
        The job's outcome: ``state``, and ``decision`` with the gates, or ``refused`` with the reason,
        or ``superseded_by`` where another run of the key is at work or came later.

    Raises:
        InputRejected: an argument, or no candles are stored for the key.
    """
    resources, job_id = self.resources, str(self.request.id)
    call = training_call(resources.settings, symbol, regime, interval, reason, requested_by)
    structlog.contextvars.bind_contextvars(model_key=str(call.key))
    with resources.transaction() as session:
        _enqueue(session, resources, job_id, call)
        owner = f"{self.request.hostname}/{os.getpid()}"
        lease = timedelta(seconds=resources.settings.lease_seconds)
        claim = jobs.claim(session, job_id, owner=owner, lease=lease)
        if isinstance(claim, jobs.Held) and claim.by_job != job_id:
            jobs.supersede(session, job_id, by_job=claim.by_job, owner=claim.by_owner)
    match claim:
        case jobs.Finished():
            return {"state": claim.job.state, **(claim.job.outcome or {})}
        case jobs.Held() if claim.by_job == job_id:
            # The message came twice, or its worker died and the lease has yet to end. The run that has
            # the job, or the sweep's, gives the result: one stored here would stand for good.
            log.info("job_is_held", owner=claim.by_owner, lease_expires_at=claim.lease_expires_at.isoformat())
            raise Ignore
        case jobs.Held():
            return {"state": "superseded", "superseded_by": claim.by_job, "owner": claim.by_owner}
        case jobs.Claimed():
            outcome = _train_claimed(resources, claim)
            if outcome.get("result") == "promoted":
                announce_champion(self.app, call.key)
            return outcome


def _train_claimed(resources: Resources, claim: jobs.Claimed) -> dict[str, Any]:
    # Not above: beat, `celery call` and the command line import this module and train nothing.
    from tasks.pipeline import train_key

    try:
        with Lease(resources, claim.job.id, claim.fencing_token) as lease:
            config = TrainingConfig.from_mapping(resources.settings.training)
            return train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
    except TrainingRefused as error:
        log.warning("training_refused", reason=error.reason, detail=error.detail)
        return {"state": "refused", "refused": error.reason, "detail": error.detail}


def record_queued(resources: Resources, job_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Write the job's row before its message goes out, so that a message lost by Redis is found by the sweep.

    A call that the worker will reject gets no row, or the sweep would send it again. Raises StoreUnavailable.
    """
    try:
        bound = inspect.signature(training_call).bind(resources.settings, *args, **kwargs)
        call = training_call(*bound.args, **bound.kwargs)
    except (TypeError, InputRejected):
        return
    with resources.transaction() as session:
        _enqueue(session, resources, job_id, call)


def _enqueue(session: Session, resources: Resources, job_id: str, call: TrainingCall) -> None:
    jobs.enqueue(
        session,
        job_id=job_id,
        key=call.key,
        reason=call.reason,
        requested_by=call.requested_by,
        as_of=data_cut(resources.clock.now(), hour=resources.settings.data_cut_hour),
    )
