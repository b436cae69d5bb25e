"""Training jobs: who may train a key now, how far it is, and what came of it.

The row and its lease are the truth; the broker's message only wakes a worker up. All times are the
server's ``clock_timestamp()``, so workers need not agree on theirs, and a lease's age is judged in the
same statement that acts on it. A run that lost its lease finds its fencing token replaced, wherever it
writes next, and raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.base import Json
from db.locks import lock
from db.models import FENCING_TOKENS, FINISHED_STATES, TrainingJob
from ml.errors import LeaseLost
from ml.keys import ModelKey

__all__ = [
    "Claimed",
    "Finished",
    "Held",
    "TrainingJob",
    "begin_fit",
    "claim",
    "enqueue",
    "finish",
    "get",
    "heartbeat",
    "mark_unsent",
    "recent",
    "release",
    "report",
    "require_lease",
    "supersede",
    "sweep",
]

NOW: Final = sa.func.clock_timestamp()
NOT_BEGUN: Final[dict[str, object]] = {"stage": None, "progress": 0.0, "fit_address": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """The job is this worker's, for as long as its heartbeats come."""

    job: TrainingJob
    fencing_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Another run trains this key. ``by_job`` is the same job where a message came twice."""

    by_job: str
    by_owner: str
    since: datetime
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The job has ended before: a late message finds the work done."""

    job: TrainingJob


def enqueue(
    session: Session, *, job_id: str, key: ModelKey, reason: str, requested_by: str, as_of: datetime
) -> bool:
    """Record a job that the caller will send to the broker after its commit; False if it is there already."""
    added = session.execute(
        insert(TrainingJob)
        .values(
            id=job_id,
            **asdict(key),
            reason=reason,
            requested_by=requested_by,
            as_of=as_of,
            queued_at=NOW,
            enqueued_at=NOW,
        )
        .on_conflict_do_nothing(index_elements=[TrainingJob.id])
        .returning(TrainingJob.id)
    )
    return added.scalar_one_or_none() is not None


def get(session: Session, job_id: str) -> TrainingJob | None:
    """The job as it is now."""
    return session.get(TrainingJob, job_id, populate_existing=True)


def recent(
    session: Session,
    limit: int,
    *,
    key: ModelKey | None = None,
    symbol: str | None = None,
    state: str | None = None,
) -> Sequence[TrainingJob]:
    """The newest ``limit`` jobs, newest first."""
    query = sa.select(TrainingJob).order_by(TrainingJob.queued_at.desc()).limit(limit)
    if key is not None:
        query = query.where(*TrainingJob.of_key(key))
    if symbol is not None:
        query = query.where(TrainingJob.symbol == symbol)
    if state is not None:
        query = query.where(TrainingJob.state == state)
    return session.scalars(query).all()


def claim(session: Session, job_id: str, *, owner: str, lease: timedelta) -> Claimed | Held | Finished:
    """Take the job, unless it has ended or its key is being trained. Of any number at once, one gets it.

    An expired lease is taken over, whether this job's or another's of the key; that other one goes
    back to the queue for the next sweep to send, or fails after its last attempt. A job whose key waits
    at a later data cut, too, ends as superseded: after an outage only the newest is worth doing.

    Raises:
        LookupError: no such job.
    """
    found = session.get(TrainingJob, job_id)
    if found is None:
        raise LookupError(f"no training job {job_id}")
    # Before any row's lock: two jobs of one key would otherwise each wait for the other's row.
    lock(session, "training", str(found.key))
    job = _locked(session, TrainingJob.id == job_id)
    assert job is not None
    if job.state in FINISHED_STATES:
        return Finished(job=job)
    running = _locked(session, *TrainingJob.of_key(job.key), TrainingJob.state == "running")
    if running is not None:
        assert running.owner and running.started_at and running.lease_expires_at
        if not _expired(session, running):
            return Held(
                by_job=running.id,
                by_owner=running.owner,
                since=running.started_at,
                lease_expires_at=running.lease_expires_at,
            )
        _end_run(session, running, counts=True, enqueued_at=None)
        if running.state in FINISHED_STATES and running.id == job_id:
            return Finished(job=running)
    if newer := _newer_queued(session, job):
        supersede(session, job_id, by_job=newer)
        session.refresh(job)
        return Finished(job=job)
    token = session.scalar(FENCING_TOKENS.next_value())
    assert token is not None
    _update(
        session,
        job,
        state="running",
        owner=owner,
        fencing_token=token,
        started_at=NOW,
        heartbeat_at=NOW,
        lease_expires_at=NOW + lease,
        stages=[],
        **NOT_BEGUN,
    )
    return Claimed(job=job, fencing_token=token)


def begin_fit(session: Session, job_id: str, token: int, address: str) -> bool:
    """Take the right to make a shared fit; False while another run with a living lease makes it.

    The right ends with the run, or with its lease: a worker that stalls holds nobody up.

    Raises:
        LeaseLost: another run has the job, or it has ended.
    """
    # Before any row's lock, as in `claim`.
    lock(session, "fit", address)
    job = require_lease(session, job_id, token)
    makers = (TrainingJob.state == "running", TrainingJob.fit_address == address)
    for maker in _locked_all(session, *makers, wait=True):
        if maker.id != job_id:
            if not _expired(session, maker):
                return False
            _update(session, maker, fit_address=None)
    _update(session, job, fit_address=address)
    return True


def heartbeat(session: Session, job_id: str, token: int, lease: timedelta) -> None:
    """Keep the lease. One that ran out but that nobody took is kept too: nothing was lost by it.

    Raises:
        LeaseLost: another run has the job, or it has ended.
    """
    kept = session.execute(
        sa.update(TrainingJob)
        .where(*_leased(job_id, token))
        .values(heartbeat_at=NOW, lease_expires_at=NOW + lease)
        .returning(TrainingJob.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if kept is None:
        raise _lease_lost(session, job_id, token)


def report(
    session: Session, job_id: str, token: int, *, stage: str, fraction: float, rows: int | None = None
) -> None:
    """Say how far the run is: ``fraction`` of the whole job, in [0, 1]. A new ``stage`` ends the one before.

    ``rows`` are those that the stage works on, once known.

    Raises:
        LeaseLost: another run has the job, or it has ended.
    """
    # Progress that a crash of the server may take back is not worth a sync of its disk.
    session.execute(sa.text("SET LOCAL synchronous_commit = off"))
    job = require_lease(session, job_id, token)
    now = _now(session)
    stages = _timed(job.stages, now)
    if not stages or stages[-1]["stage"] != stage:
        stages.append({"stage": stage, "started_at": now.isoformat(), "seconds": 0.0, "rows": None})
    if rows is not None:
        stages[-1]["rows"] = rows
    _update(session, job, stage=stage, progress=fraction, stages=stages)


def require_lease(session: Session, job_id: str, token: int) -> TrainingJob:
    """The job's row, locked to the end of the transaction: until then nobody can take the job over.

    Raises:
        LeaseLost: another run has the job, or it has ended.
    """
    job = _locked(session, *_leased(job_id, token))
    if job is None:
        raise _lease_lost(session, job_id, token)
    return job


def finish(
    session: Session,
    job_id: str,
    token: int,
    *,
    state: Literal["succeeded", "refused", "failed"],
    outcome: Json,
    model_id: int | None = None,
) -> None:
    """End the job, once.

    Raises:
        LeaseLost: another run has the job, or it has ended.
    """
    job = require_lease(session, job_id, token)
    _update(
        session,
        job,
        state=state,
        outcome=outcome,
        model_id=model_id,
        finished_at=NOW,
        lease_expires_at=None,
        progress=1.0 if state == "succeeded" else job.progress,
        stages=_timed(job.stages, _now(session)),
    )


def release(session: Session, job_id: str, token: int) -> None:
    """Give the job back to the queue without counting the attempt; the caller sends it again.

    For a failure outside that may pass, before a retry: the retry would find itself held otherwise.

    Raises:
        LeaseLost: another run has the job, or it has ended.
    """
    _end_run(session, require_lease(session, job_id, token), counts=False, enqueued_at=NOW)


def supersede(session: Session, job_id: str, *, by_job: str, owner: str | None = None) -> None:
    """End a queued job because another one trains its key, or came later; record which."""
    session.execute(
        sa.update(TrainingJob)
        .where(TrainingJob.id == job_id, TrainingJob.id != by_job, TrainingJob.state == "queued")
        .values(state="superseded", superseded_by=by_job, finished_at=NOW)
        .values(outcome={"superseded_by": by_job, "owner": owner})
        .execution_options(synchronize_session=False)
    )


def sweep(session: Session, *, queued_grace: timedelta) -> list[TrainingJob]:
    """Find jobs that lost their worker or their message; the caller sends those returned after its commit.

    A running job whose lease ran out goes back to the queue, or fails after its last attempt. A queued one
    whose message is older than ``queued_grace``, or asked for by a takeover, is sent again: a message too
    many finds the job held or finished. Rows that another sweep holds are left to it.
    """
    lost = _locked_all(session, TrainingJob.state == "running", TrainingJob.lease_expires_at <= NOW)
    for job in lost:
        _end_run(session, job, counts=True, enqueued_at=NOW)
    unsent = _locked_all(
        session,
        TrainingJob.state == "queued",
        sa.or_(TrainingJob.enqueued_at.is_(None), TrainingJob.enqueued_at <= NOW - queued_grace),
        TrainingJob.id.not_in([job.id for job in lost]),
    )
    for job in unsent:
        _update(session, job, enqueued_at=NOW)
    return [job for job in [*lost, *unsent] if job.state == "queued"]


def _leased(job_id: str, token: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        TrainingJob.id == job_id,
        TrainingJob.fencing_token == token,
        TrainingJob.state == "running",
    )


def mark_unsent(session: Session, job_ids: Sequence[str]) -> None:
    """The broker took no message for these: the next sweep sends one."""
    rows = sa.update(TrainingJob).where(TrainingJob.id.in_(job_ids), TrainingJob.state == "queued")
    session.execute(rows.values(enqueued_at=None).execution_options(synchronize_session=False))


def _locked(session: Session, *where: sa.ColumnElement[bool]) -> TrainingJob | None:
    query = sa.select(TrainingJob).where(*where).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def _locked_all(
    session: Session, *where: sa.ColumnElement[bool], wait: bool = False
) -> Sequence[TrainingJob]:
    query = sa.select(TrainingJob).where(*where).order_by(TrainingJob.queued_at)
    query = query.with_for_update(skip_locked=not wait).execution_options(populate_existing=True)
    return session.scalars(query).all()


def _now(session: Session) -> datetime:
    now = session.scalar(sa.select(NOW))
    assert isinstance(now, datetime)
    return now


def _newer_queued(session: Session, job: TrainingJob) -> str | None:
    later = (*TrainingJob.of_key(job.key), TrainingJob.state == "queued", TrainingJob.as_of > job.as_of)
    return session.scalar(sa.select(TrainingJob.id).where(*later).limit(1))


def _expired(session: Session, job: TrainingJob) -> bool:
    return job.lease_expires_at is not None and job.lease_expires_at <= _now(session)


def _end_run(
    session: Session, job: TrainingJob, *, counts: bool, enqueued_at: sa.ColumnElement[datetime] | None
) -> None:
    """Take a running job from its worker. The token stays on the row, but no write accepts it now."""
    attempts = job.attempts + int(counts)
    if counts and attempts >= job.max_attempts:
        detail = f"{job.owner} stopped answering; attempt {attempts} of {job.max_attempts}"
        outcome = {"reason": "lost its worker", "detail": detail, "stage": job.stage}
        ended = {"outcome": outcome, "finished_at": NOW, "lease_expires_at": None}
        _update(session, job, state="failed", attempts=attempts, **ended)
    else:
        again = {"attempts": attempts, "enqueued_at": enqueued_at, "lease_expires_at": None}
        _update(session, job, state="queued", **again, **NOT_BEGUN)


def _update(session: Session, job: TrainingJob, **values: object) -> None:
    """Write through, and read the server's values back into ``job``."""
    session.execute(
        sa.update(TrainingJob)
        .where(TrainingJob.id == job.id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    session.refresh(job)


def _timed(stages: Sequence[Json], now: datetime) -> list[Json]:
    """``stages`` with the duration of the last one, up to now."""
    timed = [dict(stage) for stage in stages]
    if timed:
        started = datetime.fromisoformat(timed[-1]["started_at"])
        timed[-1]["seconds"] = round((now - started).total_seconds(), 3)
    return timed


def _lease_lost(session: Session, job_id: str, token: int) -> LeaseLost:
    job = get(session, job_id)
    if job is None:
        return LeaseLost(f"training job {job_id} does not exist")
    return LeaseLost(
        f"training job {job_id} is {job.state}, owner {job.owner}, fencing token {job.fencing_token}; "
        f"this run holds token {token}"
    )
