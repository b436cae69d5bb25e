from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import jobs
from db.models import TrainingJob
from db.session import transaction
from ml.errors import LeaseLost
from ml.keys import ModelKey
from tests.integration.db.rows import AS_OF, KEY, add_model, enqueue, race

pytestmark = pytest.mark.database

LEASE = timedelta(seconds=30)
RAN_OUT = timedelta(seconds=-1)
GRACE = timedelta(minutes=10)
OTHER = ModelKey("ETHUSDT", "1h", "trending")


def claim(engine: Engine, job_id: str, *, owner: str = "worker-1", lease: timedelta = LEASE) -> Any:
    with transaction(engine) as session:
        return jobs.claim(session, job_id, owner=owner, lease=lease)


def claimed(engine: Engine, job_id: str, *, owner: str = "worker-1", lease: timedelta = LEASE) -> int:
    result = claim(engine, job_id, owner=owner, lease=lease)
    assert isinstance(result, jobs.Claimed)
    return result.fencing_token


def finish(engine: Engine, job_id: str, token: int, state: Any = "succeeded") -> None:
    with transaction(engine) as session:
        jobs.finish(session, job_id, token, state=state, outcome={"f1": 0.5})


def job(engine: Engine, job_id: str) -> TrainingJob:
    with transaction(engine) as session:
        found = jobs.get(session, job_id)
    assert found is not None
    return found


def sweep(engine: Engine, grace: timedelta = GRACE) -> list[str]:
    with transaction(engine) as session:
        return [found.id for found in jobs.sweep(session, queued_grace=grace)]


def test_job_is_recorded_once(engine: Engine) -> None:
    job_id = enqueue(engine)
    with transaction(engine) as session:
        assert not jobs.enqueue(
            session, job_id=job_id, key=OTHER, reason="again", requested_by="x", as_of=AS_OF
        )
    found = job(engine, job_id)
    assert (found.state, found.key, found.reason, found.as_of) == ("queued", KEY, "manual", AS_OF)
    assert found.enqueued_at == pytest.approx(found.queued_at, abs=timedelta(seconds=1))


def test_claimed_job_runs_under_its_owner_with_a_lease(engine: Engine) -> None:
    job_id = enqueue(engine)
    result = claim(engine, job_id)
    assert isinstance(result, jobs.Claimed)
    found = job(engine, job_id)
    assert (found.state, found.owner, found.fencing_token) == ("running", "worker-1", result.fencing_token)
    assert found.started_at is not None
    assert found.lease_expires_at == pytest.approx(found.started_at + LEASE, abs=timedelta(seconds=1))
    assert result.job.lease_expires_at == found.lease_expires_at


def test_unknown_job_cannot_be_claimed(engine: Engine) -> None:
    with pytest.raises(LookupError, match="nowhere"):
        claim(engine, "nowhere")


def test_of_eight_jobs_of_one_key_claimed_at_once_exactly_one_runs(engine: Engine) -> None:
    ids = [enqueue(engine) for _ in range(8)]
    results = race(*(partial(claim, engine, job_id, owner=job_id) for job_id in ids))
    winners = [result.job.id for result in results if isinstance(result, jobs.Claimed)]
    assert len(winners) == 1
    losers = [result for result in results if isinstance(result, jobs.Held)]
    assert [(held.by_job, held.by_owner) for held in losers] == [(winners[0], winners[0])] * 7


def test_of_eight_deliveries_of_one_job_exactly_one_runs(engine: Engine) -> None:
    job_id = enqueue(engine)
    results = race(*(partial(claim, engine, job_id, owner=f"worker-{n}") for n in range(8)))
    winner = [result for result in results if isinstance(result, jobs.Claimed)]
    assert len(winner) == 1
    assert {result.by_owner for result in results if isinstance(result, jobs.Held)} == {winner[0].job.owner}


def test_eight_workers_racing_for_expired_leases_of_two_jobs_leave_one_running(engine: Engine) -> None:
    first, second = enqueue(engine), enqueue(engine)
    claimed(engine, first, lease=RAN_OUT)
    results = race(*(partial(claim, engine, (first, second)[n % 2], owner=f"worker-{n}") for n in range(8)))
    assert sum(isinstance(result, jobs.Claimed) for result in results) == 1
    with transaction(engine) as session:
        assert len(jobs.recent(session, 10, state="running")) == 1
        assert len(jobs.recent(session, 10, state="queued")) == 1


def test_jobs_of_different_keys_run_side_by_side(engine: Engine) -> None:
    claimed(engine, enqueue(engine, KEY))
    claimed(engine, enqueue(engine, OTHER))
    with transaction(engine) as session:
        assert len(jobs.recent(session, 10, state="running")) == 2


def test_expired_lease_is_taken_over_with_a_later_token(engine: Engine) -> None:
    job_id = enqueue(engine)
    old = claimed(engine, job_id, lease=RAN_OUT)
    new = claimed(engine, job_id, owner="worker-2")
    assert new > old
    found = job(engine, job_id)
    assert (found.owner, found.attempts) == ("worker-2", 1)


def test_taking_over_from_another_job_sends_that_one_back_to_the_queue(engine: Engine) -> None:
    lost, next_one = enqueue(engine), enqueue(engine)
    claimed(engine, lost, lease=RAN_OUT)
    claimed(engine, next_one)
    found = job(engine, lost)
    assert (found.state, found.attempts, found.enqueued_at) == ("queued", 1, None)
    assert sweep(engine) == [lost]


@pytest.mark.parametrize("then", ["taken over", "swept", "finished by the next"])
def test_zombie_is_refused_wherever_it_writes(engine: Engine, then: str, subtests: pytest.Subtests) -> None:
    job_id = enqueue(engine)
    old = claimed(engine, job_id, lease=RAN_OUT)
    if then == "swept":
        sweep(engine)
    else:
        new = claimed(engine, job_id, owner="worker-2")
        if then == "finished by the next":
            finish(engine, job_id, new)
    before = state_of(engine, job_id)
    writes: dict[str, Callable[[Session], object]] = {
        "heartbeat": lambda session: jobs.heartbeat(session, job_id, old, LEASE),
        "report": lambda session: jobs.report(session, job_id, old, stage="fit", fraction=0.5),
        "require_lease": lambda session: jobs.require_lease(session, job_id, old),
        "finish": lambda session: jobs.finish(session, job_id, old, state="succeeded", outcome={}),
        "release": lambda session: jobs.release(session, job_id, old),
    }
    for name, write in writes.items():
        with (
            subtests.test(name),
            pytest.raises(LeaseLost, match=f"holds token {old}"),
            transaction(engine) as session,
        ):
            write(session)
    assert state_of(engine, job_id) == before


def state_of(engine: Engine, job_id: str) -> Any:
    with transaction(engine) as session:
        query = sa.select(TrainingJob.__table__).where(TrainingJob.__table__.c.id == job_id)
        return session.execute(query).one()


def test_heartbeat_keeps_a_lease_that_ran_out_while_nobody_wanted_it(engine: Engine) -> None:
    job_id = enqueue(engine)
    token = claimed(engine, job_id, lease=RAN_OUT)
    with transaction(engine) as session:
        jobs.heartbeat(session, job_id, token, LEASE)
    assert isinstance(claim(engine, job_id, owner="worker-2"), jobs.Held)


def test_nobody_takes_a_job_over_while_its_lease_is_required(engine: Engine) -> None:
    """A promotion holds the row: a takeover waits for its commit, and then finds the job finished."""
    job_id = enqueue(engine)
    token = claimed(engine, job_id, lease=RAN_OUT)
    with transaction(engine) as promotion:
        jobs.require_lease(promotion, job_id, token)
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"), engine.begin() as other:
            other.execute(sa.text("SET LOCAL lock_timeout = '50ms'"))
            other.execute(sa.text("SELECT 1 FROM ml_training_jobs WHERE id = :id FOR UPDATE"), {"id": job_id})
        jobs.finish(promotion, job_id, token, state="succeeded", outcome={})
    assert isinstance(claim(engine, job_id, owner="worker-2"), jobs.Finished)


def test_late_message_finds_the_work_done(engine: Engine) -> None:
    job_id = enqueue(engine)
    finish(engine, job_id, claimed(engine, job_id))
    result = claim(engine, job_id)
    assert isinstance(result, jobs.Finished)
    assert (result.job.state, result.job.outcome) == ("succeeded", {"f1": 0.5})


def test_superseded_job_says_who_trains_its_key(engine: Engine) -> None:
    running, late = enqueue(engine), enqueue(engine)
    claimed(engine, running)
    held = claim(engine, late, owner="worker-2")
    with transaction(engine) as session:
        jobs.supersede(session, late, by_job=held.by_job, owner=held.by_owner)
        jobs.supersede(session, running, by_job=held.by_job)  # a job is not superseded by itself
    found = job(engine, late)
    assert (found.state, found.superseded_by) == ("superseded", running)
    assert found.outcome is not None
    assert found.outcome["owner"] == "worker-1"
    assert job(engine, running).state == "running"


def test_sweep_sends_a_lost_job_again_once(engine: Engine) -> None:
    job_id = enqueue(engine)
    claimed(engine, job_id, lease=RAN_OUT)
    assert sweep(engine) == [job_id]
    assert sweep(engine) == []
    found = job(engine, job_id)
    assert (found.state, found.attempts, found.lease_expires_at) == ("queued", 1, None)


def test_sweep_leaves_a_living_run_alone(engine: Engine) -> None:
    claimed(engine, enqueue(engine))
    assert sweep(engine) == []


def test_sweep_sends_a_queued_job_again_after_the_grace(engine: Engine) -> None:
    job_id = enqueue(engine)
    assert sweep(engine) == []
    assert sweep(engine, grace=timedelta(0)) == [job_id]
    assert sweep(engine) == []


def test_two_sweeps_at_once_send_each_job_once(engine: Engine) -> None:
    ids = [enqueue(engine, ModelKey("BTCUSDT", interval, "trending")) for interval in ("30m", "1h", "4h")]
    for job_id in ids:
        claimed(engine, job_id, lease=RAN_OUT)
    found = race(*(partial(sweep, engine) for _ in range(4)))
    assert sorted(job_id for part in found for job_id in part) == sorted(ids)


def test_job_that_loses_three_workers_fails_and_says_why(engine: Engine) -> None:
    job_id = enqueue(engine)
    for attempt in (1, 2, 3):
        claimed(engine, job_id, owner=f"worker-{attempt}", lease=RAN_OUT)
        assert sweep(engine) == ([job_id] if attempt < 3 else [])
    found = job(engine, job_id)
    assert (found.state, found.attempts) == ("failed", 3)
    assert found.outcome == {
        "reason": "lost its worker",
        "detail": "worker-3 stopped answering; attempt 3 of 3",
        "stage": None,
    }
    assert isinstance(claim(engine, job_id), jobs.Finished)


def test_last_takeover_of_its_own_job_finds_it_failed(engine: Engine) -> None:
    job_id = enqueue(engine)
    for _ in range(3):
        claimed(engine, job_id, lease=RAN_OUT)
    result = claim(engine, job_id)
    assert isinstance(result, jobs.Finished)
    assert result.job.state == "failed"


def test_released_job_can_be_claimed_at_once_and_counts_no_attempt(engine: Engine) -> None:
    job_id = enqueue(engine)
    token = claimed(engine, job_id)
    with transaction(engine) as session:
        jobs.release(session, job_id, token)
    assert (job(engine, job_id).state, job(engine, job_id).attempts) == ("queued", 0)
    claimed(engine, job_id, owner="worker-2")


def test_stages_follow_each_other_with_their_rows_and_durations(engine: Engine) -> None:
    job_id = enqueue(engine)
    token = claimed(engine, job_id)
    for stage, fraction, rows in (("load", 0.1, None), ("load", 0.2, 900), ("fit", 0.5, 400)):
        with transaction(engine) as session:
            jobs.report(session, job_id, token, stage=stage, fraction=fraction, rows=rows)
    running = job(engine, job_id)
    assert (running.stage, running.progress) == ("fit", 0.5)
    with transaction(engine) as session:
        model = add_model(session)
        jobs.finish(session, job_id, token, state="succeeded", outcome={"f1": 0.6}, model_id=model.id)
    found = job(engine, job_id)
    assert [(stage["stage"], stage["rows"]) for stage in found.stages] == [("load", 900), ("fit", 400)]
    assert all(0 <= stage["seconds"] < 60 for stage in found.stages)
    assert (found.state, found.progress, found.model_id) == ("succeeded", 1.0, model.id)
    assert found.lease_expires_at is None


def test_refused_job_keeps_the_progress_it_had(engine: Engine) -> None:
    job_id = enqueue(engine)
    token = claimed(engine, job_id)
    with transaction(engine) as session:
        jobs.report(session, job_id, token, stage="labels", fraction=0.3)
    finish(engine, job_id, token, "refused")
    assert (job(engine, job_id).state, job(engine, job_id).progress) == ("refused", 0.3)


def test_new_run_of_a_job_starts_its_stages_anew(engine: Engine) -> None:
    job_id = enqueue(engine)
    token = claimed(engine, job_id, lease=RAN_OUT)
    with transaction(engine) as session:
        jobs.report(session, job_id, token, stage="fit", fraction=0.7)
    claimed(engine, job_id, owner="worker-2")
    found = job(engine, job_id)
    assert (found.stage, found.progress, found.stages) == (None, 0.0, [])


def test_recent_jobs_come_newest_first_by_key_and_state(engine: Engine) -> None:
    first, second, third = enqueue(engine, KEY), enqueue(engine, OTHER), enqueue(engine, KEY)
    claimed(engine, second)
    with transaction(engine) as session:
        assert [found.id for found in jobs.recent(session, 2)] == [third, second]
        assert [found.id for found in jobs.recent(session, 9, key=KEY)] == [third, first]
        assert [found.id for found in jobs.recent(session, 9, state="running")] == [second]


def test_a_job_of_an_older_cut_makes_way_for_the_newer_one_that_waits(engine: Engine) -> None:
    """A worker that was away for days finds a backlog of the same key: it trains once."""
    yesterday, today = enqueue(engine), enqueue(engine)
    with transaction(engine) as session:
        later = TrainingJob.as_of + timedelta(days=1)
        session.execute(sa.update(TrainingJob).where(TrainingJob.id == today).values(as_of=later))

    stale = claim(engine, yesterday)

    assert isinstance(stale, jobs.Finished)
    assert (stale.job.state, stale.job.superseded_by) == ("superseded", today)
    claimed(engine, today)


def test_index_allows_no_second_running_job_of_a_key_even_by_hand(engine: Engine) -> None:
    running, queued = enqueue(engine), enqueue(engine)
    claimed(engine, running)
    with (
        pytest.raises(sa.exc.IntegrityError, match="uq_ml_training_jobs_running"),
        engine.begin() as connection,
    ):
        connection.execute(
            sa.text(
                "UPDATE ml_training_jobs SET state = 'running', owner = 'x', fencing_token = 1, "
                "lease_expires_at = now() WHERE id = :id"
            ),
            {"id": queued},
        )
