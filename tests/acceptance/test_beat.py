"""Real beat processes: changes at run time without a restart, and a second beat that takes over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest
import redis
from celery import Celery
from redbeat.schedulers import RedBeatSchedulerEntry
from sqlalchemy.engine import Engine

from db import jobs
from db.session import transaction
from tests.processes import CommandResult, RunningProcess
from worker.processes import beat_argv

pytestmark = pytest.mark.scheduler

Start = Callable[[list[str], Mapping[str, str]], RunningProcess]
RunCli = Callable[..., CommandResult]
LOCK_SECONDS = 3
FAST = {
    "ALPHAPLUS_BEAT_TICK_SECONDS": "1",
    "ALPHAPLUS_BEAT_LOCK_SECONDS": str(LOCK_SECONDS),
    "ALPHAPLUS_SWEEP_SECONDS": "1",
}
LOCKED = "beat: Acquired lock"


def sent(redis_url: str, queue: str, task: str) -> list[str]:
    """Ids of a task's messages that wait on a queue, oldest first."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        headers = [json.loads(message)["headers"] for message in reversed(client.lrange(queue, 0, -1))]
    return [header["id"] for header in headers if header["task"] == task]


def sweeps(redis_url: str) -> list[str]:
    """Ids of the sweeps that were sent; other entries of the schedule use the same queue."""
    return sent(redis_url, "maintenance", "tasks.sweep_jobs")


def make_due(redis_url: str, name: str) -> None:
    """As if the entry's last run were a day ago: a cron comes at whole minutes only."""
    app = Celery("alphaplus", set_as_current=False)
    app.conf.update(
        redbeat_redis_url=redis_url,
        redbeat_redis_options={},
        redbeat_key_prefix="alphaplus:beat:",
        timezone="UTC",
    )
    entry = RedBeatSchedulerEntry.from_key(f"alphaplus:beat:{name}", app=app)
    entry.reschedule(datetime.now(UTC) - timedelta(days=1))


def test_entry_added_while_beat_runs_is_sent_and_has_its_job_row(
    processes: Start, settings_env: dict[str, str], redis_url: str, engine: Engine, run_cli: RunCli
) -> None:
    beat = processes(beat_argv(), settings_env | FAST)
    beat.wait_for_line(LOCKED)
    beat.wait_for(lambda: len(sweeps(redis_url)) >= 2, "two sweeps")

    added = run_cli("schedule", "add", "SOLUSDT", "trending", "0 9 * * *", "--json", env=FAST)
    assert added.exit_code == 0, added.stderr
    assert [entry["name"] for entry in json.loads(added.stdout)] == ["train-SOLUSDT-trending"]
    make_due(redis_url, "train-SOLUSDT-trending")
    beat.wait_for(lambda: len(sent(redis_url, "training", "tasks.train")) == 1, "the added training")
    with transaction(engine) as session:
        [job] = jobs.recent(session, 10)
        assert [job.id] == sent(redis_url, "training", "tasks.train")
        assert (str(job.key), job.state, job.reason) == ("SOLUSDT 1h trending", "queued", "schedule")

    assert run_cli("schedule", "remove", "sweep-jobs", env=FAST).exit_code == 0
    status = json.loads(run_cli("schedule", "status", "--json", env=FAST).stdout)
    assert status["beat"]["pid"] == beat.pid
    entries = {entry["name"]: entry for entry in status["entries"]}
    assert entries["sweep-jobs"]["state"] == "removed"
    assert entries["train-SOLUSDT-trending"]["last_job"]["id"] == job.id

    before = len(sweeps(redis_url))
    make_due(redis_url, "train-BTCUSDT-volatile")
    beat.wait_for(
        lambda: len(sent(redis_url, "training", "tasks.train")) == 2, "a training after the sweep was removed"
    )
    assert len(sweeps(redis_url)) == before
    assert beat.terminate() == 0
    assert run_cli("schedule", "status", env=FAST).exit_code == 1


def test_second_beat_waits_and_takes_over_from_a_killed_one(
    processes: Start, settings_env: dict[str, str], redis_url: str
) -> None:
    first = processes(beat_argv(), settings_env | FAST)
    first.wait_for_line(LOCKED)
    second = processes(beat_argv(), settings_env | FAST)
    second.wait_for_line("beat: Starting...")
    first.wait_for(lambda: len(sweeps(redis_url)) >= 3, "three sweeps")
    assert LOCKED not in second.log.read_text()

    first.kill()
    before = len(sweeps(redis_url))
    second.wait_for_line(LOCKED)
    second.wait_for(lambda: len(sweeps(redis_url)) >= before + 2, "sweeps of the second beat")
    ids = sweeps(redis_url)
    assert len(ids) == len(set(ids))


def test_beat_that_waits_stops_at_once_when_it_is_told_to(
    processes: Start, settings_env: dict[str, str]
) -> None:
    first = processes(beat_argv(), settings_env | FAST)
    first.wait_for_line(LOCKED)
    second = processes(beat_argv(), settings_env | FAST)
    second.wait_for_line("beat: Starting...")
    second.terminate(timeout_seconds=20)
    assert LOCKED not in second.log.read_text()
    assert first.running
