"""tasks.train: one job, from its message to its outcome."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import structlog
from celery import shared_task

from db import jobs
from ml.config import TrainingConfig
from ml.errors import KeyRejected, TrainingRefused
from ml.keys import ModelKey
from runtime.clock import data_cut
from tasks.base import Resources, Task
from tasks.lease import Lease
from tasks.run import Run

__all__ = ["key_of", "record_queued", "train"]

log = structlog.get_logger(__name__)


@shared_task(base=Task, bind=True, name="tasks.train")
def train(
    self: Task,
    symbol: str,
    regime: str,
    interval: str | None = None,
    reason: str = "manual",
    requested_by: str = "",
) -> dict[str, Any]:
    """Train a challenger for (symbol, interval, regime) and promote it if it passes every gate.

    The job's id is the task's id, so a second delivery of the message finds what the first one did.

    Returns:
        The job's outcome: ``state``, and ``decision`` with the gates, or ``refused`` with the reason,
        or ``held_by`` where another run of the key is at work.

    Raises:
        KeyRejected: the key is not of the vocabulary, or no candles are stored for it.
    """
    resources, job_id = self.resources, str(self.request.id)
    key = ModelKey(symbol, interval or resources.settings.default_interval, regime)
    structlog.contextvars.bind_contextvars(model_key=str(key))
    cut = data_cut(resources.clock.now(), hour=resources.settings.data_cut_hour)
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=key, reason=reason, requested_by=requested_by, as_of=cut)
        owner = f"{self.request.hostname}/{os.getpid()}"
        claim = jobs.claim(
            session, job_id, owner=owner, lease=timedelta(seconds=resources.settings.lease_seconds)
        )
        if isinstance(claim, jobs.Held) and claim.by_job != job_id:
            jobs.supersede(session, job_id, claim)
    match claim:
        case jobs.Finished():
            return {"state": claim.job.state, **(claim.job.outcome or {})}
        case jobs.Held():
            held_by = {"job": claim.by_job, "owner": claim.by_owner, "since": claim.since.isoformat()}
            log.info("key_is_held", **held_by)
            return {"state": "superseded" if claim.by_job != job_id else "running", "held_by": held_by}
        case jobs.Claimed():
            try:
                # Not above: beat, `celery call` and the command line import this module and train nothing.
                from tasks.pipeline import train_key

                with Lease(resources, job_id, claim.fencing_token) as lease:
                    config = TrainingConfig.from_mapping(resources.settings.training)
                    return train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
            except TrainingRefused as error:
                log.warning("training_refused", reason=error.reason, detail=error.detail)
                return {"state": "refused", "refused": error.reason, "detail": error.detail}


def record_queued(resources: Resources, job_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Write the job's row before its message goes out, so that a message lost by Redis is found by the sweep.

    A call that names no valid key gets no row: the worker rejects it by name.
    """
    settings = resources.settings
    try:
        key = key_of(args, kwargs, settings.default_interval)
    except KeyRejected:
        return
    named = dict(zip(("reason", "requested_by"), args[3:], strict=False)) | dict(kwargs)
    with resources.transaction() as session:
        jobs.enqueue(
            session,
            job_id=job_id,
            key=key,
            reason=str(named.get("reason", "manual")),
            requested_by=str(named.get("requested_by", "")),
            as_of=data_cut(resources.clock.now(), hour=settings.data_cut_hour),
        )


def key_of(args: Sequence[Any], kwargs: Mapping[str, Any], default_interval: str) -> ModelKey:
    """The model key that a call of tasks.train names. Raises KeyRejected."""
    names = ("symbol", "regime", "interval")
    given = {**dict(zip(names, args, strict=False)), **{n: kwargs[n] for n in names if n in kwargs}}
    missing = [name for name in ("symbol", "regime") if name not in given]
    if missing:
        raise KeyRejected(missing[0], None, "tasks.train needs symbol and regime")
    return ModelKey(given["symbol"], given.get("interval") or default_interval, given["regime"])
