"""Drift's retrainings: within the day's budget, sent after the commit, or begun by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import Session

from db import audit, jobs
from db.drift_actions import NO_ALERT
from db.locks import lock
from ml.errors import InputRejected
from tasks.drift_actions import act, retrain_now
from tasks.retraining import send
from tests.integration.db.rows import KEY
from tests.integration.drifting import BNB, DAY, ETH, HOUR, REJECTED, System, raw, sent

pytestmark = pytest.mark.drift


@pytest.fixture
def system(database_url: str) -> System:
    return System(database_url)


@pytest.fixture
def sender(redis_url: str) -> Iterator[Celery]:
    with Celery("sender", broker=redis_url, set_as_current=False) as app:
        yield app


def test_beyond_the_days_budget_retrainings_wait_and_say_why_the_worst_first(
    database_url: str,
) -> None:
    system = System(database_url, drift_retrainings_per_day=1)
    system.champion(ETH)
    system.champion(BNB)
    _, first = system.act("critical")
    assert first is not None
    began = system.now
    system.finish(first.job.id, **REJECTED)
    system.run()
    system.act("high", key=BNB)
    system.clock.moment += HOUR
    waiting, none = system.act("critical", key=ETH)

    assert none is None
    assert (waiting.state, waiting.job_id, waiting.due_at) == ("open", None, began + DAY)
    assert waiting.outcome == {
        "waits": "1 drift retrainings began in the last 24 hours (ALPHAPLUS_DRIFT_RETRAININGS_PER_DAY)"
    }
    assert system.run(hours=22)[0] == {}
    system.clock.moment = began + DAY
    done, (retraining,) = system.run()
    assert done == {"begun": [str(ETH)], "put_off": [str(BNB)]}
    assert retraining.job.key == ETH
    assert (system.actions(ETH)[0].outcome, system.actions(BNB)[0].due_at) == (
        {"adopted": False},
        began + 2 * DAY,
    )


def test_jobs_that_ran_anyway_do_not_count_in_the_budget(database_url: str) -> None:
    system = System(database_url, drift_retrainings_per_day=1)
    system.champion(ETH)
    system.enqueue("beat's")
    system.act("critical")
    _, retraining = system.act("critical", key=ETH)
    assert retraining is not None


def test_what_is_begun_by_hand_takes_nothing_from_the_budget(database_url: str, sender: Celery) -> None:
    system = System(database_url, drift_retrainings_per_day=1)
    system.champion(ETH)
    retrain_now(system.resources, KEY, actor="cli:ana", reason="new fees", app=sender)
    assert system.actions()[0].outcome == {"adopted": False, "by_hand": True}
    _, retraining = system.act("critical", key=ETH)
    assert retraining is not None


def test_a_job_that_was_superseded_by_another_takes_nothing_from_the_budget(database_url: str) -> None:
    system = System(database_url, drift_retrainings_per_day=1)
    system.champion(ETH)
    _, first = system.act("critical")
    assert first is not None
    with system.resources.transaction() as session:
        jobs.enqueue(session, job_id="b", key=KEY, reason="schedule", requested_by="beat", as_of=system.now)
        jobs.supersede(session, first.job.id, by_job="b")
    system.run()
    _, retraining = system.act("critical", key=ETH)
    assert retraining is not None


def test_a_message_carries_the_jobs_id_and_arguments(system: System, sender: Celery, redis_url: str) -> None:
    action, retraining = system.act("critical")
    assert retraining is not None
    send(sender, system.resources, retraining)
    arguments = ["BTCUSDT", "trending", "1h", "drift", f"alert {action.alert_id}"]
    assert sent(redis_url) == [(retraining.job.id, arguments)]


def test_a_scheduled_retrainings_message_is_the_last_of_its_queue(
    system: System, sender: Celery, redis_url: str
) -> None:
    _, retraining = system.act("critical")
    assert retraining is not None
    send(sender, system.resources, replace(retraining, low_priority=True))
    sender.send_task("tasks.train", args=["ETHUSDT", "trending"], task_id="sent later")
    order = []
    with sender.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
        for _ in range(2):
            message = queue.get(timeout=5)
            order.append(message.headers["id"])
            message.ack()
    assert order == ["sent later", retraining.job.id]


def test_a_job_whose_sender_was_killed_after_the_commit_is_found_by_the_sweep(system: System) -> None:
    _, retraining = system.act("critical")
    assert retraining is not None
    with system.resources.transaction() as session:
        (lost,) = jobs.sweep(session, queued_grace=timedelta(0))
    assert (lost.id, lost.reason) == (retraining.job.id, "drift")


def test_where_the_broker_is_away_the_next_sweep_sends_the_job(system: System) -> None:
    _, retraining = system.act("critical")
    assert retraining is not None
    with Celery("sender", broker="redis://127.0.0.1:1/0", set_as_current=False) as nobody:
        nobody.conf.broker_transport_options = {"socket_connect_timeout": 1}
        nobody.conf.task_publish_retry = False
        send(nobody, system.resources, retraining)
    with system.resources.transaction() as session:
        (lost,) = jobs.sweep(session, queued_grace=DAY)
    assert lost.id == retraining.job.id


def test_an_alert_whose_transaction_fails_leaves_neither_action_nor_job(system: System) -> None:
    def fails(session: Session) -> None:
        act(session, system.resources, alarm, slot=None, now=system.now)
        session.execute(sa.text("SELECT 1 / 0"))

    alarm = system.alert("critical")
    with pytest.raises(sa.exc.DataError), system.resources.transaction() as session:
        fails(session)
    assert (system.actions(), system.jobs()) == ([], [])


def test_an_alert_takes_the_audit_logs_lock_last_so_that_nobody_waits_in_a_ring(system: System) -> None:
    """Somebody else holds the budget, and writes to the audit log before it lets go."""
    alarm = system.alert("critical")

    def alert() -> object:
        with system.resources.transaction() as session:
            return act(session, system.resources, alarm, slot=None, now=system.now)[1]

    with ThreadPoolExecutor(1) as threads, system.resources.transaction() as session:
        lock(session, "drift-budget")
        waiting = threads.submit(alert)
        waits = sa.text(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
        )
        while session.scalar(waits) == 0:
            time.sleep(0.01)
        audit.append(session, action="threshold", actor="a", subject="*", why="b", details={}, now=system.now)
    assert waiting.result() is not None


def test_the_audit_row_of_an_alert_says_when_its_retraining_is_really_due(database_url: str) -> None:
    system = System(database_url, drift_retrainings_per_day=1)
    system.champion(ETH)
    system.act("critical", key=ETH)
    system.clock.moment += HOUR
    action, none = system.act("critical")
    assert none is None
    with system.resources.transaction() as session:
        entry = audit.recent(session, 1)[0]
    assert entry.subject == str(KEY)
    assert entry.details["due_at"] == (system.now + 23 * HOUR).isoformat()
    assert action.due_at == system.now + 23 * HOUR


def test_an_operator_retrains_a_key_by_hand_in_spite_of_cooldown_and_budget(
    database_url: str, sender: Celery, redis_url: str
) -> None:
    system = System(database_url, drift_retrainings_per_day=1)
    _, retraining = system.act("critical")
    assert retraining is not None
    system.finish(retraining.job.id, **REJECTED)
    system.run()

    found = retrain_now(system.resources, KEY, actor="cli:ana", reason="new fees", app=sender)

    assert found["began"]
    described = found["action"]
    assert (described["action"], described["state"], described["severity"]) == (
        "retrain_now",
        "open",
        "critical",
    )
    assert json.dumps(found)
    assert [job_id for job_id, _ in sent(redis_url)] == [described["job_id"]]
    assert [job.reason for job in system.jobs()] == ["drift", "drift"]
    with system.resources.transaction() as session:
        entry = audit.recent(session, 1)[0]
        assert (entry.action, entry.actor, entry.why) == ("drift_action", "cli:ana", "new fees")


def test_by_hand_a_retraining_that_waits_begins_now_and_one_that_runs_is_left_alone(
    system: System, sender: Celery, redis_url: str
) -> None:
    scheduled, _ = system.act("high")
    first = retrain_now(system.resources, KEY, actor="cli:ana", reason="now", app=sender)
    second = retrain_now(system.resources, KEY, actor="cli:ana", reason="now", app=sender)

    assert (first["began"], second["began"]) == (True, False)
    assert first["action"] == second["action"]
    assert first["action"]["id"] == scheduled.id
    assert len(system.jobs()) == len(system.actions()) == 1
    (message,) = raw(redis_url)
    assert message["properties"]["priority"] == 0  # the scheduled action's own would come last


def test_by_hand_a_key_that_was_never_checked_is_retrained_too(
    system: System, sender: Celery, redis_url: str
) -> None:
    found = retrain_now(system.resources, KEY, actor="cli:ana", reason="", app=sender)
    assert (found["action"]["alert_id"], found["action"]["severity"]) == (str(NO_ALERT), "none")
    assert system.jobs()[0].requested_by == "an operator"


def test_by_hand_a_key_without_champion_or_a_reason_that_is_no_text_is_refused(system: System) -> None:
    with pytest.raises(InputRejected, match="a key with a champion"):
        retrain_now(system.resources, ETH, actor="cli:ana", reason="why not")
    with pytest.raises(InputRejected, match="printable"):
        retrain_now(system.resources, KEY, actor="cli:ana", reason="\n")
    assert (system.actions(), system.jobs()) == ([], [])
