"""Training through real workers: who trains, what is kept, and what a kill or a stall may cost (nothing)."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psutil
import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.engine import Engine

from db import audit, candles, jobs, references, registry
from db.models import AuditEntry, EvaluationRow, ModelRow, TrainingJob
from db.session import transaction
from feeds import samples
from ml.candles import resample
from ml.keys import ModelKey
from tests.processes import RunningProcess

pytestmark = pytest.mark.training

REPLAY_START = datetime(2019, 10, 1, 0, 30, tzinfo=UTC)
KEY = ModelKey("BTCUSDT", "1h", "trending")
WAIT_SECONDS = 120.0

Worker = Callable[..., RunningProcess]
Train = Callable[..., str]


@pytest.fixture
def env() -> dict[str, str]:
    """A replay at the samples' end, short leases, one thread."""
    return {
        "ALPHAPLUS_CLOCK": "replay",
        "ALPHAPLUS_REPLAY_START": REPLAY_START.isoformat(),
        "ALPHAPLUS_LEASE_SECONDS": "3",
        "ALPHAPLUS_HEARTBEAT_SECONDS": "0.5",
        "ALPHAPLUS_QUEUED_GRACE_SECONDS": "5",
        "ALPHAPLUS_TRAINING__BOOTSTRAP_SAMPLES": "200",
        "ALPHAPLUS_TRAINING__FIT__THREADS": "1",
        "ALPHAPLUS_TRAINING__DRIFT__NULL_MONTHS": "15",
        "ALPHAPLUS_LOG_FORMAT": "json",
        "REMAP_SIGTERM": "SIGQUIT",
    }


@pytest.fixture
def hourly(engine: Engine) -> None:
    """BTC and ETH, real, 1h, in the database."""
    for symbol in samples.SYMBOLS:
        series = resample(samples.load(symbol, now=REPLAY_START), "1h")
        with transaction(engine) as session:
            source = samples.source(symbol)
            candles.write(
                session, symbol=symbol, interval="1h", candles=series, source=source, now=REPLAY_START
            )


@pytest.fixture
def sender(redis_url: str) -> Iterator[Celery]:
    """A client that has nothing of ours: a name, a queue, JSON."""
    app = Celery("sender", broker=redis_url, backend=redis_url)
    yield app
    app.close()


@pytest.fixture
def train(sender: Celery) -> Train:
    """Send tasks.train; returns the job's id."""

    def send(symbol: str, regime: str, job_id: str | None = None) -> str:
        job_id = job_id or str(uuid4())
        sender.send_task("tasks.train", args=[symbol, regime], task_id=job_id, queue="training")
        return job_id

    return send


def wait_for_job(
    engine: Engine, job_id: str, *states: str, sweep: Callable[[], object] | None = None
) -> TrainingJob:
    """The job once it is in one of ``states``; ``sweep`` is called each second meanwhile, as beat does."""
    deadline, swept = time.monotonic() + WAIT_SECONDS, time.monotonic()
    while time.monotonic() < deadline:
        with transaction(engine) as session:
            job = jobs.get(session, job_id)
        if job is not None and job.state in states:
            return job
        if sweep is not None and time.monotonic() - swept > 1:
            sweep()
            swept = time.monotonic()
        time.sleep(0.02)
    raise AssertionError(f"job {job_id} is not in {states} after {WAIT_SECONDS:g} s: {job and job.state}")


def wait_for_stage(engine: Engine, job_id: str, stage: str) -> TrainingJob:
    """The job once its running stage is ``stage``."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        with transaction(engine) as session:
            job = jobs.get(session, job_id)
        if job is not None and job.stage == stage and job.state == "running":
            return job
        time.sleep(0.005)
    raise AssertionError(f"job {job_id} never came to {stage}")


def count(engine: Engine, table: type) -> int:
    with transaction(engine) as session:
        return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def test_six_keys_and_the_fallbacks_are_trained_with_stages_gates_reference_and_audit(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train
) -> None:
    worker_process("training", "--concurrency=1", env=env)
    wanted = [("BTCUSDT", regime) for regime in ("trending", "sideways", "volatile", "consolidation", "all")]
    wanted += [("ETHUSDT", regime) for regime in ("trending", "sideways", "all")]
    ids = [train(symbol, regime) for symbol, regime in wanted]

    done = [wait_for_job(engine, job_id, "succeeded", "refused", "failed") for job_id in ids]

    assert [job.state for job in done] == ["succeeded"] * 8
    for job in done:
        assert [stage["stage"] for stage in job.stages] == [
            "load", "clean", "regimes", "labels", "fit", "evaluate", "save",
        ]  # fmt: skip
        assert job.outcome is not None
        assert job.as_of == datetime(2019, 10, 1, tzinfo=UTC)
        assert job.finished_at is not None
        assert len(job.outcome["decision"]["gates"]) == 10
    # One fit for eight keys: the first made it, the others found it.
    assert [job.outcome["fit_reused"] for job in done if job.outcome] == [False] + [True] * 7
    with transaction(engine) as session:
        assert session.scalar(sa.text("SELECT count(*) FROM ml_model_artifacts WHERE kind = 'booster'")) == 1
        for (symbol, regime), job in zip(wanted, done, strict=True):
            assert job.outcome is not None
            key = ModelKey(symbol, "1h", regime)
            model = registry.get(session, key)
            assert model is not None
            promoted = job.outcome["decision"]["promote"]
            assert model.state == ("champion" if promoted else "rejected")
            assert bool(job.outcome["decision"]["reasons"]) is not promoted
            assert references.load(session, model.id) is not None
            assert references.load_calibration(session, model.id) is not None
            assert model.details["sources"][symbol] == samples.source(symbol)
        assert audit.verify(session).rows == 8
    assert count(engine, EvaluationRow) == 8


def test_a_second_delivery_of_a_finished_job_changes_nothing(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train, sender: Celery
) -> None:
    worker_process("training", "--concurrency=1", env=env | {"ALPHAPLUS_TRAINING__POOL": "symbol"})
    job_id = train("BTCUSDT", "trending")
    first = wait_for_job(engine, job_id, "succeeded")
    before = {table: count(engine, table) for table in (TrainingJob, ModelRow, EvaluationRow, AuditEntry)}

    train("BTCUSDT", "trending", job_id)
    another = train("BTCUSDT", "trending")  # worked on after it: one child, one queue
    unchanged = wait_for_job(engine, another, "succeeded")

    with transaction(engine) as session:
        again = jobs.get(session, job_id)
    assert again is not None
    assert (again.finished_at, again.fencing_token) == (first.finished_at, first.fencing_token)
    assert unchanged.outcome is not None
    assert unchanged.outcome["result"] == "unchanged"  # same candles, same options: the same bytes
    after = {table: count(engine, table) for table in before}
    assert after == before | {TrainingJob: 2}


def test_of_two_runs_of_a_key_one_trains_and_the_other_says_who_does(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train
) -> None:
    worker_process("training", "--concurrency=2", env=env)
    first = train("BTCUSDT", "trending")
    trainer = wait_for_stage(engine, first, "fit")

    second = wait_for_job(engine, train("BTCUSDT", "trending"), "superseded")

    assert second.superseded_by == first
    assert second.outcome is not None
    assert second.outcome["owner"] == trainer.owner
    wait_for_job(engine, first, "succeeded")
    assert count(engine, ModelRow) == 1


def test_a_worker_killed_in_the_middle_of_a_fit_loses_no_job_and_makes_no_second_model(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train, sender: Celery
) -> None:
    worker = worker_process("training", "--concurrency=1", env=env)
    worker_process("maintenance", "--pool=solo", env=env)
    job_id = train("BTCUSDT", "trending")
    killed = wait_for_stage(engine, job_id, "fit")

    worker.kill()
    worker_process("training", "--concurrency=1", env=env)
    done = wait_for_job(
        engine, job_id, "succeeded", sweep=lambda: sender.send_task("tasks.sweep_jobs", queue="maintenance")
    )

    assert done.attempts == 1
    assert done.fencing_token is not None
    assert killed.fencing_token is not None
    assert done.fencing_token > killed.fencing_token
    assert count(engine, TrainingJob) == 1
    assert count(engine, ModelRow) == 1
    # The broker's own redelivery comes later, with the same id, and finds the work done.
    train("BTCUSDT", "trending", job_id)
    wait_for_job(engine, train("BTCUSDT", "all"), "succeeded")
    with transaction(engine) as session:
        late = jobs.get(session, job_id)
    assert late is not None
    assert (late.finished_at, late.fencing_token) == (done.finished_at, done.fencing_token)
    assert count(engine, ModelRow) == 2  # trending and all


def test_a_worker_that_stalls_past_its_lease_writes_nothing_when_it_wakes(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train, sender: Celery
) -> None:
    zombie = worker_process("training", "--concurrency=1", env=env)
    worker_process("maintenance", "--pool=solo", env=env)
    job_id = train("BTCUSDT", "trending")
    stalled = wait_for_stage(engine, job_id, "fit")
    with _stopped(zombie):
        worker_process("training", "--concurrency=1", env=env)
        done = wait_for_job(
            engine,
            job_id,
            "succeeded",
            sweep=lambda: sender.send_task("tasks.sweep_jobs", queue="maintenance"),
        )
    zombie.wait_for_line("LeaseLost")

    assert stalled.owner != done.owner
    with transaction(engine) as session:
        later = jobs.get(session, job_id)
        assert later is not None
        assert (later.owner, later.finished_at) == (done.owner, done.finished_at)
        assert session.scalars(sa.select(ModelRow.job_id)).all() == [job_id]
        assert audit.verify(session).rows == 1


@contextlib.contextmanager
def _stopped(worker: RunningProcess) -> Iterator[None]:
    """The worker and its children, frozen as by a machine that hangs."""
    frozen = [psutil.Process(worker.pid), *worker.children()]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in frozen:
            process.send_signal(signal.SIGCONT)


def test_a_database_that_drops_every_connection_delays_a_job_and_loses_nothing(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train, sender: Celery
) -> None:
    worker_process("training", "--concurrency=1", env=env)
    worker_process("maintenance", "--pool=solo", env=env)
    job_id = train("BTCUSDT", "trending")
    wait_for_stage(engine, job_id, "fit")

    engine.dispose()
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    wait_for_job(
        engine, job_id, "succeeded", sweep=lambda: sender.send_task("tasks.sweep_jobs", queue="maintenance")
    )

    assert count(engine, ModelRow) == 1


def test_a_job_whose_message_never_came_is_sent_by_the_sweep(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, sender: Celery
) -> None:
    job_id = str(uuid4())
    with transaction(engine) as session:
        jobs.enqueue(
            session,
            job_id=job_id,
            key=KEY,
            reason="manual",
            requested_by="test",
            as_of=datetime(2019, 10, 1, tzinfo=UTC),
        )
        session.execute(sa.update(TrainingJob).values(enqueued_at=sa.func.now() - timedelta(minutes=11)))
    worker_process("training", "--concurrency=1", env=env)
    worker_process("maintenance", "--pool=solo", env=env)

    done = wait_for_job(
        engine, job_id, "succeeded", sweep=lambda: sender.send_task("tasks.sweep_jobs", queue="maintenance")
    )

    assert (done.reason, done.requested_by) == ("manual", "test")


def test_bad_calls_fail_at_once_with_the_field_named_and_write_no_model(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, sender: Celery
) -> None:
    worker = worker_process("training", "--concurrency=1", env=env)
    bad: dict[str, list[list[object]]] = {
        "symbol": [
            ["../../etc", "trending"],
            ["'; drop table ml_models; --", "trending"],
            [None, "trending"],
        ],
        "regime": [["BTCUSDT", "bogus"], ["BTCUSDT", 7]],
        "interval": [["BTCUSDT", "trending", "7h"]],
        "arguments": [["BTCUSDT"], ["BTCUSDT", "trending", "1h", "manual", "me", "too many"]],
    }
    for field, calls in bad.items():
        for args in calls:
            sent = sender.send_task("tasks.train", args=args, queue="training")
            with pytest.raises(Exception, match=field):
                sent.get(timeout=30)
    assert count(engine, TrainingJob) == 0

    unknown = sender.send_task("tasks.train", args=["DOGEUSDT", "trending"], queue="training")
    with pytest.raises(Exception, match="DOGEUSDT"):
        unknown.get(timeout=30)
    refused = wait_for_job(engine, unknown.id, "refused")
    assert refused.outcome is not None
    assert refused.outcome["error"]["field"] == "symbol"
    assert refused.outcome["error"]["limit"].endswith("BTCUSDT, ETHUSDT")
    assert count(engine, ModelRow) == 0
    assert worker.running


def test_a_job_at_its_soft_time_limit_is_failed_with_the_limit_named(
    worker_process: Worker, env: dict[str, str], engine: Engine, hourly: None, train: Train
) -> None:
    limits = {
        "ALPHAPLUS_TRAIN_SOFT_LIMIT_SECONDS": "1",
        "ALPHAPLUS_TRAIN_HARD_LIMIT_SECONDS": "60",
        "ALPHAPLUS_TRAINING__BOOTSTRAP_SAMPLES": "20000",
        "ALPHAPLUS_TRAINING__FIT__EARLY_STOPPING_ROUNDS": "400",
    }
    worker_process("training", "--concurrency=1", env=env | limits)

    failed = wait_for_job(engine, train("BTCUSDT", "all"), "failed")

    assert failed.outcome is not None
    assert failed.outcome["error"] == "TrainingTimeout"
    assert "soft time limit of 1 s (ALPHAPLUS_TRAIN_SOFT_LIMIT_SECONDS)" in failed.outcome["detail"]
    assert count(engine, ModelRow) == 0
