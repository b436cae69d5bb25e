"""Drift through real workers: from a check of every champion to what came of the retraining."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import redis
from celery import Celery
from sqlalchemy.engine import Engine

from db import audit, drift, drift_actions, jobs
from db.drift_actions import DriftAction
from db.drift_models import DriftAlert
from db.session import transaction
from tests.integration.drifting import write_drifted
from tests.predicting import wait_until
from tests.processes import RunningProcess, run_command
from tests.trained import CHAMPIONS, CUT, TRAINING

pytestmark = pytest.mark.drift

ALL = CHAMPIONS[0]
DAY = timedelta(days=1)
NOW = CUT + 21 * DAY + timedelta(minutes=30)


@pytest.fixture
def env(trained_env: dict[str, str]) -> dict[str, str]:
    """Three weeks after the champions' data cut."""
    return trained_env | {
        "ALPHAPLUS_REPLAY_START": NOW.isoformat(),
        "ALPHAPLUS_TRAINING": json.dumps(TRAINING),
        "ALPHAPLUS_QUEUED_GRACE_SECONDS": "1",
    }


@pytest.fixture
def app(redis_url: str) -> Celery:
    return Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False)


def alerts(engine: Engine) -> list[DriftAlert]:
    with transaction(engine) as session:
        return list(drift.recent_alerts(session, since=CUT, limit=1000))


def actions(engine: Engine) -> list[DriftAction]:
    with transaction(engine) as session:
        return list(drift_actions.actions(session, key=ALL, limit=10))


@pytest.mark.timeout(300)
def test_drifted_candles_alarm_retrain_though_the_message_is_lost_and_the_outcome_is_on_the_action(
    env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    app: Celery,
    trained_engine: Engine,
    redis_url: str,
) -> None:
    with transaction(trained_engine) as session:
        write_drifted(session, CUT, ranges=4.0, volume=6.0)
    worker_process("drift", "--concurrency=1", env=env)
    app.send_task("tasks.check_all_drift", queue="drift")
    kinds = 2 * len(CHAMPIONS)  # features and scores; nothing has matured
    wait_until(lambda: len(alerts(trained_engine)) == kinds, "a check of each champion", 60)

    found = alerts(trained_engine)
    assert {alert.key for alert in found} == set(CHAMPIONS)
    assert {alert.as_of for alert in found} == {CUT + 21 * DAY}
    [action] = actions(trained_engine)
    worst = next(alert for alert in found if alert.id == action.alert_id)
    assert (worst.key, worst.severity, action.action) == (ALL, "critical", "retrain_now")

    with redis.Redis.from_url(redis_url) as server:
        wait_until(lambda: server.llen("training") > 0, "the job's message")
        server.delete("training")
    worker_process("training,maintenance", "--concurrency=1", env=env)

    def closed() -> bool:
        app.send_task("tasks.sweep_jobs", queue="maintenance", expires=5)
        app.send_task("tasks.run_drift_actions", queue="maintenance", expires=5)
        return all(one.state != "open" for one in actions(trained_engine))

    wait_until(closed, "what came of the retraining", 120)
    [action] = actions(trained_engine)
    with transaction(trained_engine) as session:
        job = jobs.get(session, str(action.job_id))
        assert job is not None
        assert (job.state, job.reason, job.requested_by) == ("succeeded", "drift", f"alert {worst.id}")
        assert job.as_of == CUT + 21 * DAY
        assert job.outcome is not None
        assert action.outcome is not None
        assert action.outcome["result"] == job.outcome["result"]
        assert action.outcome["version"] == 2
        begun = {
            row.details["alert_id"]: row for row in audit.recent(session, 100) if row.action == "drift_action"
        }
        assert (begun[str(worst.id)].subject, begun[str(worst.id)].actor) == (str(ALL), "tasks.check_drift")
    assert action.snoozed_until == NOW + 7 * DAY
    assert action.state == ("snoozed" if job.outcome["result"] == "rejected" else "done")


def test_a_second_fan_out_within_the_hour_changes_nothing(
    env: dict[str, str], worker_process: Callable[..., RunningProcess], app: Celery, trained_engine: Engine
) -> None:
    worker = worker_process("drift", "--concurrency=1", env=env)
    for _ in range(2):
        app.send_task("tasks.check_all_drift", queue="drift")
    checked = 2 * len(CHAMPIONS)
    wait_until(lambda: worker.log.read_text().count('"drift_checked"') == checked, "all checks", 60)
    assert worker.log.read_text().count('"state": "no_new_candles"') == len(CHAMPIONS)
    found = alerts(trained_engine)
    assert len({(alert.key, alert.kind) for alert in found}) == len(found) == 2 * len(CHAMPIONS)


def test_celery_call_checks_one_champion_and_a_wrong_key_fails_with_its_words(
    env: dict[str, str], worker_process: Callable[..., RunningProcess], app: Celery
) -> None:
    worker_process("drift", "--concurrency=1", env=env)
    done = run_command(["celery", "call", "tasks.check_drift", "--args", "BTCUSDT,trending"], env)
    assert (done.exit_code, done.stderr) == (0, "")
    found = app.AsyncResult(done.stdout.strip()).get(timeout=60)
    assert (found["key"], found["state"]) == ("BTCUSDT 1h trending", "checked")
    assert datetime.fromisoformat(found["as_of"]) == CUT + 21 * DAY

    wrong = app.send_task("tasks.check_drift", args=["BTCUSDT", "bull"], queue="drift")
    error = wrong.get(timeout=60, propagate=False)
    assert type(error).__name__ == "KeyRejected"
    assert "trending, sideways, volatile, consolidation, all" in str(error)
