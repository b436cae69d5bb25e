"""Holding a training job: a lease renewed from a thread, and the fencing token that every write shows.

The lease is a row in ``ml_training_jobs``; all its times are the database server's. A worker that
stalls past its lease finds out at its next report, and cannot commit anything afterwards, because
the transaction that saves a model checks the token under a row lock (Kleppmann, "How to do
distributed locking", 2016).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import accumulate
from typing import Any, Final, Self

import structlog
from sqlalchemy.orm import Session

from db import jobs
from ml.errors import (
    InputRejected,
    LeaseLost,
    RetryLater,
    StoreUnavailable,
    TrainingRefused,
    TrainingTimeout,
)
from tasks.base import Resources

__all__ = ["STAGES", "Lease"]

PROGRESS_SECONDS = 0.5

_SHARES: Final = {
    "load": 0.10,
    "clean": 0.05,
    "regimes": 0.10,
    "labels": 0.10,
    "fit": 0.50,
    "evaluate": 0.10,
    "save": 0.05,
}
"""Each stage's share of the progress bar, roughly its share of the time."""
STAGES: Final = tuple(_SHARES)
_START: Final = dict(zip(STAGES, accumulate(_SHARES.values(), initial=0.0), strict=False))

log = structlog.get_logger(__name__)


class Lease:
    """A claimed job, as a context manager. However the block ends, the job's row says so.

    It also holds the soft time limit, which `check` looks at: Celery's raises wherever the program happens
    to be, and in one of XGBoost's callbacks from C that corrupts its memory.

    Args:
        resources: this process's database and settings.
        job_id: the job, which is also the Celery task id.
        token: the fencing token that ``jobs.claim`` gave.
    """

    def __init__(self, resources: Resources, job_id: str, token: int) -> None:
        self.job_id = job_id
        self.token = token
        self._resources = resources
        self._progress = ("", 0.0)
        self._reporting = threading.Lock()
        self._lost = threading.Event()
        self._stopped = threading.Event()
        self._finished = False
        self._deadline = time.monotonic() + resources.settings.train_soft_limit_seconds
        self._thread = threading.Thread(target=self._keep_alive, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._stopped.set()
        self._thread.join()
        if not isinstance(error, Exception):
            return
        try:
            self._record_end(error)
        except (StoreUnavailable, LeaseLost) as unwritten:
            # The row still says running; the sweep finds it when the lease ends.
            log.warning("end_not_recorded", error=str(error), because=str(unwritten))

    def check(self) -> None:
        """Raises LeaseLost when another worker holds the job, TrainingTimeout past the soft time limit."""
        if self._lost.is_set():
            raise LeaseLost(
                f"job {self.job_id}: the lease of token {self.token} has passed to another worker"
            )
        if time.monotonic() > self._deadline:
            limit = self._resources.settings.train_soft_limit_seconds
            raise TrainingTimeout(
                f"stopped in stage {self._progress[0]!r} at the soft time limit of {limit} s "
                "(ALPHAPLUS_TRAIN_SOFT_LIMIT_SECONDS)"
            )

    def progress(self, fraction: float) -> None:
        """Note how far the stage is, 0 to 1; the heartbeat thread writes it within half a second.

        Raises:
            LeaseLost: so that a long stage stops soon after its job was taken.
            TrainingTimeout: so that it stops soon after its time is over.
        """
        self.check()
        stage, _ = self._progress
        self._progress = (stage, _START[stage] + fraction * _SHARES[stage])

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, int]]:
        """Write one stage's begin and end on the job's row; the body may put its ``rows`` into the dict."""
        self.check()
        counts: dict[str, int] = {}
        self._enter(name, _START[name])
        started = time.monotonic()
        yield counts
        if self._finished:
            return  # the row has its end, and takes no report any more
        self.check()
        self._enter(name, _START[name] + _SHARES[name], rows=counts.get("rows"))
        log.info("stage_done", stage=name, seconds=round(time.monotonic() - started, 3), **counts)

    def require(self, session: Session) -> None:
        """Lock the job's row in ``session`` and check the token there. Raises LeaseLost."""
        jobs.require_lease(session, self.job_id, self.token)

    def finish(self, session: Session, *, outcome: dict[str, Any], model_id: int) -> None:
        """End the job well, in the transaction that saves its model. Raises LeaseLost."""
        jobs.finish(session, self.job_id, self.token, state="succeeded", outcome=outcome, model_id=model_id)
        self._finished = True

    def _enter(self, stage: str, fraction: float, *, rows: int | None = None) -> None:
        # The lock keeps the thread from writing a stage that is over after the one that follows it.
        with self._reporting:
            self._progress = (stage, fraction)
            self._report(stage, fraction, rows=rows)

    def _report(self, stage: str, fraction: float, *, rows: int | None = None) -> None:
        with self._resources.transaction() as session:
            jobs.report(session, self.job_id, self.token, stage=stage, fraction=round(fraction, 4), rows=rows)

    def _record_end(self, error: Exception) -> None:
        """A block that ends well has finished the job itself, in the transaction that saved its model."""
        if isinstance(error, LeaseLost):
            return
        with self._resources.transaction() as session:
            if isinstance(error, RetryLater):
                jobs.release(session, self.job_id, self.token)
            elif isinstance(error, TrainingRefused):
                outcome: dict[str, object] = {"refused": error.reason, "detail": error.detail}
                jobs.finish(session, self.job_id, self.token, state="refused", outcome=outcome)
            elif isinstance(error, InputRejected):
                outcome = {"refused": "input", "detail": str(error), "error": error.as_json()}
                jobs.finish(session, self.job_id, self.token, state="refused", outcome=outcome)
            else:
                detail = str(error) or "no message"
                outcome = {"reason": "error", "error": type(error).__name__, "detail": detail}
                jobs.finish(session, self.job_id, self.token, state="failed", outcome=outcome)

    def _keep_alive(self) -> None:
        settings = self._resources.settings
        lease = timedelta(seconds=settings.lease_seconds)
        written, renewed = self._progress, time.monotonic()
        while not self._stopped.wait(PROGRESS_SECONDS):
            due = time.monotonic() - renewed >= settings.heartbeat_seconds
            try:
                if self._finished:
                    return
                if due:
                    with self._resources.transaction() as session:
                        jobs.heartbeat(session, self.job_id, self.token, lease)
                    renewed = time.monotonic()
                with self._reporting:
                    if self._progress != written:
                        written = self._progress
                        self._report(*written)
            except LeaseLost:
                self._lost.set()
                return
            except StoreUnavailable as error:
                # The lease outlives a short outage; if it does not, the token refuses our writes.
                log.warning("heartbeat_missed", error=str(error))
