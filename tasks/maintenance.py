"""tasks.sweep_jobs: finds the jobs that lost their worker or their message, and sends them again."""

from __future__ import annotations

from datetime import timedelta

import structlog
from celery import shared_task

from db import jobs
from tasks.base import Task

__all__ = ["sweep_jobs"]

log = structlog.get_logger(__name__)


@shared_task(base=Task, bind=True, name="tasks.sweep_jobs", ignore_result=True)
def sweep_jobs(self: Task) -> list[str]:
    """Send again each job whose lease ended without an outcome, and each whose message never came.

    Sent after the commit, and where the broker fails the rest is marked for the next sweep: a message too
    many finds the job held or finished. It keeps the job's id, so a late redelivery of the first one changes
    nothing.

    Returns:
        The ids sent again.
    """
    grace = timedelta(seconds=self.resources.settings.queued_grace_seconds)
    with self.resources.transaction() as session:
        lost = jobs.sweep(session, queued_grace=grace)
    unsent = [job.id for job in lost]
    try:
        for job in lost:
            key = job.key
            log.warning("job_sent_again", job_id=job.id, model_key=str(key), attempts=job.attempts)
            arguments = [key.symbol, key.regime, key.interval, job.reason, job.requested_by]
            self.app.send_task("tasks.train", args=arguments, task_id=job.id)
            unsent.remove(job.id)
    finally:
        if unsent:
            with self.resources.transaction() as session:
                jobs.mark_unsent(session, unsent)
    return [job.id for job in lost]
