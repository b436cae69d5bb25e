"""From an alert to a retraining, and to what came of it: one open action a key, snoozed after its end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from db import audit, drift_actions, jobs
from db.drift_actions import DriftAction
from ml.errors import StoreUnavailable
from runtime.clock import WallClock
from tasks.drift_actions import run_due
from tasks.retraining import Retraining
from tests.integration.db.rows import AS_OF, KEY, race
from tests.integration.drifting import DAY, ETH, HOUR, REJECTED, System

pytestmark = pytest.mark.drift


@pytest.fixture
def system(database_url: str) -> System:
    return System(database_url)


def states(found: list[DriftAction]) -> list[tuple[str, str, str | None]]:
    return [(one.action, one.state, (one.outcome or {}).get("result")) for one in found]


def test_a_critical_alert_trains_at_once_with_the_alert_on_the_job(system: System) -> None:
    action, retraining = system.act("critical")

    assert retraining is not None
    (job,) = system.jobs()
    assert (job.key, job.state, job.reason) == (KEY, "queued", "drift")
    assert job.requested_by == f"alert {action.alert_id}"
    assert job.as_of == AS_OF  # the day's data cut
    (stored,) = system.actions()
    assert (stored.action, stored.state, stored.job_id) == ("retrain_now", "open", job.id)
    assert (stored.severity, stored.due_at, stored.as_of) == ("critical", system.now, system.now)
    assert (retraining.job.id, retraining.low_priority) == (job.id, False)
    with system.resources.transaction() as session:
        (entry, _promoted) = audit.recent(session, 5)
        assert (entry.action, entry.actor, entry.subject) == ("drift_action", "tasks.check_drift", str(KEY))
        assert entry.details["alert_id"] == str(action.alert_id)


def test_a_high_alert_is_scheduled_for_the_keys_slot_as_far_off_as_by_the_wall(system: System) -> None:
    action, retraining = system.act("high", slot=WallClock().now() + 5 * HOUR)

    assert retraining is None
    assert system.jobs() == []
    assert (action.action, action.state, action.job_id) == ("schedule_retraining", "open", None)
    due_at = system.now + 5 * HOUR + timedelta(minutes=2)
    assert action.due_at == pytest.approx(due_at, abs=timedelta(minutes=1))


def test_the_job_that_beat_sends_at_the_slot_is_there_before_the_action_is_due(system: System) -> None:
    system.act("high", slot=WallClock().now() + 5 * HOUR)
    system.alert("high", kind="accuracy")
    assert system.run(hours=5, seconds=30) == ({}, [])
    system.enqueue("beat's")
    assert system.run(minutes=2) == ({"adopted": [str(KEY)]}, [])


@pytest.mark.parametrize("hours", [None, -1, 25], ids=["no slot", "a slot that is past", "a slot too late"])
def test_without_a_slot_within_a_day_a_high_alert_is_due_in_24_hours(
    system: System, hours: int | None
) -> None:
    slot = None if hours is None else WallClock().now() + hours * HOUR
    action, _ = system.act("high", slot=slot)
    assert action.due_at == system.now + DAY


def test_a_key_has_one_open_action_however_often_it_alerts(system: System) -> None:
    first, _ = system.act("critical")
    system.clock.moment += HOUR
    second, retraining = system.act("critical")
    system.clock.moment += HOUR
    third, _ = system.act("high")
    assert (second.id, third.id, retraining) == (first.id, first.id, None)
    assert len(system.actions()) == len(system.jobs()) == 1


def test_a_critical_alert_takes_the_place_of_a_retraining_that_is_only_scheduled(system: System) -> None:
    system.act("high")
    system.clock.moment += HOUR
    action, retraining = system.act("critical")

    assert retraining is not None
    old, new = system.actions()
    assert states([old, new]) == [
        ("schedule_retraining", "cancelled", "escalated"),
        ("retrain_now", "open", None),
    ]
    assert old.closed_at == system.now
    assert old.snoozed_until is None
    assert (new.id, new.job_id) == (action.id, retraining.job.id)


def test_a_scheduled_retraining_begins_when_it_is_due_and_not_before(system: System) -> None:
    action, _ = system.act("high")

    assert system.run(hours=23) == ({}, [])
    system.alert("high")  # it has not fallen silent
    done, (retraining,) = system.run(hours=1)

    assert done == {"begun": [str(KEY)]}
    assert retraining.low_priority
    (job,) = system.jobs()
    assert (job.id, job.reason, job.requested_by) == (retraining.job.id, "drift", f"alert {action.alert_id}")
    (begun,) = system.actions()
    assert (begun.state, begun.job_id, begun.due_at) == ("open", job.id, system.now)
    assert system.run() == ({}, [])
    assert len(system.jobs()) == 1


def test_two_runs_at_once_begin_one_job_an_action(system: System) -> None:
    system.champion(ETH)
    for key in (KEY, ETH):
        system.act("high", key=key)
    system.clock.moment += DAY

    retrainings: list[Retraining] = []
    done = race(*[lambda: run_due(system.resources, retrainings.append)] * 3)

    begun = [key for found in done for key in found.get("begun", [])]
    assert sorted(begun) == sorted([str(KEY), str(ETH)])
    assert len(retrainings) == 2
    assert sorted(job.key for job in system.jobs()) == sorted([KEY, ETH])


def test_one_action_that_cannot_be_taken_on_keeps_no_other_from_its_turn(system: System) -> None:
    """Its job's outcome was mended by hand: a promotion names a model."""
    system.champion(ETH)
    _, broken = system.act("critical")
    assert broken is not None
    system.finish(broken.job.id, result="unchanged", model_state="champion")
    system.act("high", key=ETH)
    system.clock.moment += DAY

    done, retrainings = system.run()

    assert done == {"begun": [str(ETH)]}
    assert [one.job.key for one in retrainings] == [ETH]
    assert states(system.actions()) == [("retrain_now", "open", None)]


def test_each_message_is_sent_after_its_own_commit_whatever_stops_the_next(system: System) -> None:
    system.champion(ETH)
    for key in (KEY, ETH):
        system.act("high", key=key)
    system.clock.moment += DAY
    told = []

    def tell(retraining: Retraining) -> None:
        told.append(retraining.job.id)
        raise StoreUnavailable("the server went away")

    with pytest.raises(StoreUnavailable):
        run_due(system.resources, tell)
    assert told == [job.id for job in system.jobs()]
    assert len(told) == 1


def test_an_alert_that_fell_silent_before_it_was_due_is_cancelled_and_says_so(system: System) -> None:
    system.act("high")
    system.clock.moment += 20 * HOUR
    system.alert("none")
    done, retrainings = system.run(hours=4)

    assert (done, retrainings, system.jobs()) == ({"cancelled": [str(KEY)]}, [], [])
    (action,) = system.actions()
    assert states([action]) == [("schedule_retraining", "cancelled", "cancelled")]
    assert action.outcome is not None
    assert action.outcome["says"] == "the alert fell silent: at 2019-10-18 05:00 the score was 0.050"
    assert action.snoozed_until is None
    # It was not retrained: the next alert is heard at once.
    _, retraining = system.act("critical")
    assert retraining is not None


def test_one_kind_that_is_still_loud_keeps_the_retraining(system: System) -> None:
    system.act("high")
    system.clock.moment += 20 * HOUR
    system.alert("none")
    system.alert("high", kind="accuracy")
    done, _ = system.run(hours=4)
    assert done == {"begun": [str(KEY)]}


def test_a_champion_that_was_replaced_meanwhile_needs_no_retraining(system: System) -> None:
    system.act("high")
    system.champion()
    done, _ = system.run(hours=24)
    assert done == {"cancelled": [str(KEY)]}
    assert system.actions()[0].outcome == {
        "result": "cancelled",
        "says": "the champion that the alert was about is version 2 now",
    }


@pytest.mark.parametrize("severity", ["critical", "high"])
def test_a_job_that_trains_the_key_anyway_is_waited_for(system: System, severity: str) -> None:
    system.enqueue("beat's")
    system.enqueue("another key's", ETH)
    _, retraining = system.act(severity)
    done, retrainings = system.run()

    assert (retraining, retrainings) == (None, [])
    assert done == ({} if severity == "critical" else {"adopted": [str(KEY)]})
    (action,) = system.actions()
    assert (action.job_id, action.outcome) == ("beat's", {"adopted": True})
    assert len(system.jobs()) == 2

    system.finish("beat's", result="promoted", model_id=2, version=2)
    assert system.run()[0] == {"closed": [str(KEY)]}
    assert states(system.actions()) == [(action.action, "done", "promoted")]


def test_a_job_that_began_and_ended_since_the_alert_is_what_came_of_it(system: System) -> None:
    system.finish(system.enqueue("before"), result="rejected", decision={"reasons": ["older"]})
    system.act("high")
    assert system.run() == ({}, [])
    system.finish(system.enqueue("since"), result="rejected", version=3, decision={"reasons": ["f1"]})

    assert system.run()[0] == {"closed": [str(KEY)]}
    (action,) = system.actions()
    assert (action.job_id, action.state) == ("since", "snoozed")


def test_the_job_that_did_a_superseded_ones_work_gives_the_outcome(system: System) -> None:
    _, retraining = system.act("critical")
    assert retraining is not None
    other = system.enqueue("another")
    with system.resources.transaction() as session:
        jobs.supersede(session, retraining.job.id, by_job=other)
    assert system.run() == ({}, [])
    system.finish(other, result="promoted", version=5)

    assert system.run()[0] == {"closed": [str(KEY)]}
    (action,) = system.actions()
    assert (action.job_id, action.outcome and action.outcome["version"]) == ("another", 5)
    assert action.outcome is not None
    assert action.outcome["adopted"]


@pytest.mark.parametrize(
    ("state", "outcome", "closed", "days", "result", "says"),
    [
        (
            "succeeded", {"result": "promoted", "model_id": 7, "version": 4, "decision": {"reasons": []}},
            "done", 7, "promoted", "version 4 took the champion's place",
        ),
        ("succeeded", REJECTED, "snoozed", 7, "rejected", "version 4 was rejected: f1 0.5 < 0.6; auc"),
        (
            "succeeded", {"result": "unchanged", "model_id": 1, "version": 1, "model_state": "champion"},
            "snoozed", 7, "unchanged", "the same candles and options made version 1 again",
        ),
        (
            "succeeded", {"result": "unchanged", "model_id": 7, "version": 4, "model_state": "champion"},
            "done", 7, "promoted", "version 4 took the champion's place",
        ),
        (
            "succeeded", {"result": "shadow", "model_id": 7, "version": 4},
            "done", 7, "shadow", "version 4: shadow",
        ),
        (
            "refused", {"refused": "gaps", "detail": "5 of 9 are missing"},
            "snoozed", 7, "refused", "the data carry no model: gaps: 5 of 9 are missing",
        ),
        (
            "failed", {"reason": "error", "detail": "no memory"},
            "done", 1, "failed", "the training failed: no memory",
        ),
    ],
    ids=["promoted", "rejected", "unchanged", "made twice", "shadow", "refused", "failed"],
)  # fmt: skip
def test_what_came_of_it_closes_the_action_and_snoozes_the_alerts(
    system: System, state: str, outcome: dict[str, Any], closed: str, days: int, result: str, says: str
) -> None:
    _, retraining = system.act("critical")
    assert retraining is not None
    assert system.run(minutes=1) == ({}, [])
    system.finish(retraining.job.id, state, **outcome)

    assert system.run(minutes=1) == ({"closed": [str(KEY)]}, [])
    assert system.run(minutes=1) == ({}, [])

    (action,) = system.actions()
    ended = system.now - timedelta(minutes=1)
    assert (action.state, action.closed_at, action.snoozed_until) == (closed, ended, ended + days * DAY)
    assert action.outcome is not None
    assert action.outcome["result"] == result
    assert action.outcome["reasons"] == outcome.get("decision", {}).get("reasons", [])
    until = ended + days * DAY
    assert action.outcome["says"] == f"{says}; until {until:%Y-%m-%d %H:%M} alerts of the key start nothing"
    with system.resources.transaction() as session:
        assert drift_actions.snoozed_until(session, KEY, until - timedelta(microseconds=1)) == until
        assert drift_actions.snoozed_until(session, KEY, until) is None
        assert drift_actions.snoozed_until(session, ETH, ended) is None


def test_the_cooldown_is_the_settings(database_url: str) -> None:
    system = System(database_url, training={"drift": {"cooldown_days": 2}})
    _, retraining = system.act("critical")
    assert retraining is not None
    system.finish(retraining.job.id, **REJECTED)
    system.run()
    assert system.actions()[0].snoozed_until == system.now + 2 * DAY
