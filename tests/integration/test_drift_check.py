"""Checks of trained champions on real candles: routing, severity, what follows, and what is no error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from db import drift, drift_actions, jobs, predictions, references, registry, thresholds
from db.drift_models import DriftAlert, DriftNull
from db.models import Artifact, ModelRow, TrainingJob
from db.thresholds import Scope
from ml.alarms import SeverityLimits
from ml.candles import to_datetime64
from ml.config import LabelConfig
from ml.dataset import ROW_FEATURE_NAMES, build_rows
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from tasks.base import Resources
from tasks.drift_checks import DriftChecks
from tasks.drift_window import SignalCache
from tests.integration.db.prediction_rows import outcome, record
from tests.integration.db.rows import race
from tests.integration.drifting import write_drifted
from tests.real_candles import real_candles
from tests.trained import CHAMPIONS, CUT, FixedClock, resources_of

pytestmark = pytest.mark.drift

ALL, TRENDING, SIDEWAYS, VOLATILE = CHAMPIONS
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LATER = CUT + 21 * DAY + timedelta(minutes=5)
SERIOUS = SeverityLimits(low=1e-9, medium=2e-9, high=3e-9, critical=1e9)
"""Any drift at all is high."""


class System:
    """The trained database three weeks after its data cut, and checks of it."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.clock = FixedClock(LATER)
        made = resources_of(url, LATER, **settings).settings
        self.resources = Resources(lambda: made, lambda _: self.clock)
        self.checks = DriftChecks(self.resources)

    def check(self, key: ModelKey, slot: datetime | None = None) -> dict[str, Any]:
        found, self.retraining = self.checks.check(key, lambda _: slot)
        return found

    def limits(self, limits: SeverityLimits) -> None:
        with self.resources.transaction() as session:
            thresholds.set_threshold(
                session, Scope(), limits, now=self.clock.now() - HOUR, actor="test", why="test"
            )

    def inject(self, start: datetime, *, ranges: float, volume: float) -> None:
        with self.resources.transaction() as session:
            write_drifted(session, start, ranges=ranges, volume=volume)

    def alerts(self) -> list[DriftAlert]:
        with self.resources.transaction() as session:
            return list(session.scalars(sa.select(DriftAlert).order_by(DriftAlert.as_of, DriftAlert.kind)))

    def jobs(self) -> list[TrainingJob]:
        """Drift's, oldest first."""
        with self.resources.transaction() as session:
            return [job for job in jobs.recent(session, 100)[::-1] if job.reason == "drift"]


@pytest.fixture
def make(trained_database_url: str) -> Iterator[Callable[..., System]]:
    made = []

    def system(**settings: Any) -> System:
        made.append(System(trained_database_url, **settings))
        return made[-1]

    yield system
    for one in made:
        one.resources.engine.dispose()


@pytest.fixture
def system(make: Callable[..., System]) -> System:
    return make()


def test_each_champion_is_checked_by_its_own_regimes_newest_signals(system: System) -> None:
    for key in CHAMPIONS:
        found = system.check(key)
        assert (found["state"], found["version"]) == ("checked", 1)
        assert found["as_of"] == (CUT + 21 * DAY).isoformat()
        assert [(one["kind"], one["rows"]) for one in found["checks"]] == [("features", 250), ("scores", 250)]
        assert found["score"] == max(one["score"] for one in found["checks"])
        assert (found["snoozed_until"], found["action"]) == (None, None)
    alerts = system.alerts()
    assert len(alerts) == 2 * len(CHAMPIONS)
    assert {alert.as_of for alert in alerts} == {CUT + 21 * DAY}
    with system.resources.transaction() as session:
        for alert in alerts:
            names = [row.feature for row in drift.details(session, alert)]
            expected = ROW_FEATURE_NAMES if alert.kind == "features" else ("(confidence)",)
            assert sorted(names) == sorted(expected)
    # Few candles at first; of volatile signals these hold too few, and all is read.
    assert system.checks._signals.reads == 2


@pytest.mark.parametrize("key", [*CHAMPIONS, ModelKey("BTCUSDT", "1h", "consolidation")], ids=str)
def test_the_current_rows_are_those_that_training_makes_of_the_same_candles(
    system: System, key: ModelKey
) -> None:
    after = CUT - 60 * DAY
    known = real_candles("BTCUSDT").until(CUT + 21 * DAY)
    rows = build_rows(clean(known).candles, symbol="BTCUSDT", config=LabelConfig())
    own = rows.close_time > to_datetime64(after)
    if key.regime != "all":
        own &= rows.regime == REGIMES.index(key.regime)
    for wanted in (250, 2000):
        with system.resources.transaction() as session:
            found = SignalCache().read(session, key, rows=wanted, after=after, now=LATER)
        assert found is not None
        expected = rows.features[np.flatnonzero(own)[-wanted:]]
        np.testing.assert_allclose(found.newest(key, wanted, after=after), expected, rtol=1e-6, atol=1e-9)
        assert len(expected) == min(wanted, int(own.sum()))


def test_a_change_of_regime_alone_is_routing_and_no_drift(system: System) -> None:
    """Three days of bars so wide that each is volatile: the other champions' rows are the same as before."""
    others = (TRENDING, SIDEWAYS)
    system.clock.moment = CUT + 7 * DAY + timedelta(minutes=5)
    before = {key: system.check(key) for key in CHAMPIONS}
    system.inject(CUT + 7 * DAY, ranges=8.0, volume=8.0)
    system.clock.moment += 3 * DAY
    after = {key: system.check(key) for key in CHAMPIONS}

    assert {one["state"] for one in after.values()} == {"checked"}
    assert [after[key]["score"] for key in others] == [before[key]["score"] for key in others]
    assert [after[key]["severity"] for key in others] == ["none", "none"]
    # The rows went to the champion of the regime that they are of; there, and only there, they may be drift.
    assert after[VOLATILE]["score"] > 2 * before[VOLATILE]["score"]


def test_candles_that_have_drifted_are_critical_and_train_at_once_with_the_alert_on_the_job(
    system: System,
) -> None:
    assert system.check(ALL)["severity"] == "none"
    system.clock.moment += HOUR
    system.inject(CUT, ranges=4.0, volume=6.0)
    found = system.check(ALL)

    assert found["severity"] == "critical"
    worst = max(found["checks"], key=lambda one: one["score"])
    assert worst["score"] > 0.3
    assert found["action"]["action"] == "retrain_now"
    assert found["action"]["alert_id"] == worst["alert_id"]
    (job,) = system.jobs()
    assert system.retraining is not None
    assert system.retraining.job.id == job.id == found["action"]["job_id"]
    assert (job.key, job.reason, job.requested_by) == (ALL, "drift", f"alert {worst['alert_id']}")
    with system.resources.transaction() as session:
        alert = drift.get_alert(session, next(a.id for a in system.alerts() if a.severity == "critical"))
        assert alert is not None
        drifted = [row for row in drift.details(session, alert) if row.details["drifted"]]
        assert len(drifted) > 3


def test_a_second_check_by_the_same_candles_changes_nothing(system: System) -> None:
    system.limits(replace(SERIOUS, critical=4e-9))
    assert system.check(ALL)["action"]["action"] == "retrain_now"
    before = _everything(system)
    system.clock.moment += 50 * timedelta(minutes=1)

    again = system.check(ALL)

    assert (again["state"], again["as_of"]) == ("no_new_candles", (CUT + 21 * DAY).isoformat())
    assert system.retraining is None
    system.clock.moment -= 3 * HOUR  # a replay may be set back
    assert system.check(ALL)["state"] == "no_new_candles"
    assert _everything(system) == before
    assert len(before) > 40


def _everything(system: System) -> list[str]:
    tables = ("ml_drift_alerts", "ml_drift_details", "ml_drift_actions", "ml_training_jobs", "ml_audit_log")
    with system.resources.transaction() as session:
        return [
            text
            for table in tables
            for text in session.scalars(
                sa.text(f"SELECT xmin || ' ' || t::text FROM {table} AS t ORDER BY 1")
            )
        ]


def test_two_checks_at_once_record_once_and_begin_one_job(make: Callable[..., System]) -> None:
    systems = [make(), make()]
    systems[0].limits(replace(SERIOUS, critical=4e-9))
    found = race(*(lambda one=one: one.check(ALL) for one in systems))
    assert sorted(one["state"] for one in found) == ["checked", "no_new_candles"]
    assert len(systems[0].alerts()) == 2
    assert len(systems[0].jobs()) == 1
    assert sum(one.retraining is not None for one in systems) == 1


def test_a_high_alert_is_scheduled_and_a_medium_one_is_only_recorded(system: System) -> None:
    system.limits(SERIOUS)
    assert system.check(ALL)["action"]["action"] == "schedule_retraining"
    system.limits(replace(SERIOUS, high=1e8))
    found = system.check(SIDEWAYS)
    assert (found["severity"], found["action"]) == ("medium", None)
    with system.resources.transaction() as session:
        assert [action.key for action in drift_actions.actions(session, limit=10)] == [ALL]
    assert system.jobs() == []


def test_while_alerts_are_snoozed_they_are_recorded_say_so_and_start_nothing(system: System) -> None:
    system.limits(replace(SERIOUS, critical=4e-9))
    system.check(ALL)
    until = LATER + 3 * DAY
    with system.resources.transaction() as session:
        action = drift_actions.open_action(session, ALL)
        assert action is not None
        drift_actions.close_action(
            session, action, state="snoozed", now=LATER, snoozed_until=until, outcome={"result": "rejected"}
        )
        assert action.job_id is not None
        claim = jobs.claim(session, action.job_id, owner="test", lease=HOUR)
        assert isinstance(claim, jobs.Claimed)
        jobs.finish(session, claim.job.id, claim.fencing_token, state="succeeded", outcome={})
    system.clock.moment += HOUR
    found = system.check(ALL)
    assert (found["severity"], found["snoozed_until"], found["action"]) == (
        "critical", until.isoformat(), None
    )  # fmt: skip
    loud = [alert for alert in system.alerts() if alert.as_of == CUT + 21 * DAY + HOUR]
    assert {alert.snoozed_until for alert in loud if alert.severity == "critical"} == {until}
    assert {alert.snoozed_until for alert in loud if alert.severity == "none"} <= {None}
    assert len(system.jobs()) == 1

    system.clock.moment = until + timedelta(minutes=5)
    assert system.check(ALL)["action"]["state"] == "open"
    assert len(system.jobs()) == 2


def test_a_key_without_champion_is_no_error(system: System) -> None:
    found = system.check(ModelKey("BTCUSDT", "1h", "consolidation"))
    assert found == {"state": "no_champion", "detail": "BTCUSDT 1h consolidation has no champion"}


def test_a_champion_trained_before_drift_was_calibrated_says_to_train_again(system: System) -> None:
    with system.resources.transaction() as session:
        session.execute(sa.delete(DriftNull))
    found = system.check(TRENDING)
    assert (found["state"], found["version"]) == ("no_calibration", 1)
    assert found["detail"] == "version 1 was trained before drift was calibrated: train again"


def test_too_few_rows_are_said_with_their_number_and_the_limit(make: Callable[..., System]) -> None:
    for days, least in ((3, 1), (20, 200)):
        system = make(training={"drift": {"window_days": days}})
        found = system.check(TRENDING)
        assert (found["state"], found["limit"]) == ("too_few_rows", 250)
        assert least <= found["rows"] < 250
        assert found["detail"].startswith(f"{found['rows']} signals of BTCUSDT 1h trending after 2019-")
        assert found["detail"].endswith("; at least 250 are needed")
        assert system.alerts() == []


def test_outcomes_are_checked_where_signals_are_too_few_for_the_other_kinds(
    make: Callable[..., System],
) -> None:
    system = make(training={"drift": {"window_days": 3}})
    resolve_disappointing(system, ALL)

    found = system.check(ALL)

    assert (found["state"], found["severity"]) == ("checked", "critical")
    assert [one["kind"] for one in found["checks"]] == ["calibration", "accuracy"]
    assert [alert.kind for alert in system.alerts()] == ["accuracy", "calibration"]
    assert found["action"]["action"] == "retrain_now"
    assert (found["not_checked"], found["limit"]) == (["features", "scores"], 250)
    assert found["detail"].startswith(
        f"features and scores were not checked: {found['rows']} signals of BTCUSDT 1h all after 2019-"
    )
    assert "not_checked" not in make().check(SIDEWAYS)


def test_a_series_that_stopped_long_ago_has_no_candles(system: System) -> None:
    system.clock.moment = CUT + 900 * DAY
    assert system.check(TRENDING)["state"] == "no_candles"


def test_a_champion_whose_bytes_are_damaged_is_not_checked(system: System) -> None:
    with system.resources.transaction() as session:
        row = registry.champion(session, TRENDING)
        assert row is not None
        session.execute(
            sa.update(Artifact).where(Artifact.sha256 == row.artifact_sha256).values(body=b"{}", size=2)
        )
    assert system.check(TRENDING)["state"] == "artifact_corrupt"


def test_a_champion_replaced_while_it_was_checked_alarms_nobody(system: System) -> None:
    system.limits(SERIOUS)

    def replaced(key: ModelKey) -> None:
        with system.resources.transaction() as session:
            session.execute(
                sa.update(ModelRow).where(*ModelRow.of_key(key)).values(state="archived", archived_at=LATER)
            )

    found, retraining = system.checks.check(ALL, replaced)
    assert (found["state"], retraining) == ("champion_changed", None)
    assert system.alerts() == []


def test_outcomes_that_are_not_what_the_champion_promised_are_drift_too(system: System) -> None:
    resolve_disappointing(system, ALL)
    found = system.check(ALL)
    kinds = {one["kind"]: one for one in found["checks"]}
    assert set(kinds) == {"features", "scores", "calibration", "accuracy"}
    assert kinds["calibration"]["rows"] == 200
    assert kinds["calibration"]["severity"] == "critical"
    with system.resources.transaction() as session:
        alert = drift.get_alert(session, UUID(kinds["calibration"]["alert_id"]))
        assert alert is not None
        assert alert.model_id is not None
        calibration = references.load_calibration(session, alert.model_id)
        assert calibration is not None
    judged = calibration.outcomes.calibration
    volatile = judged.centre[REGIMES.index("volatile")] + judged.past.mean
    assert alert.details["mean_judged"] == pytest.approx(volatile)
    assert alert.details["mean_judged"] != pytest.approx(judged.centre[0] + judged.past.mean)
    assert found["action"]["alert_id"] in {kinds["calibration"]["alert_id"], kinds["accuracy"]["alert_id"]}


def resolve_disappointing(system: System, key: ModelKey) -> None:
    """200 answers of 0.75, of which a third was right."""
    with system.resources.transaction() as session:
        model = registry.champion(session, key)
        assert model is not None
        rows = [
            record(
                id=str(uuid4()),
                model_id=model.id,
                signal_time=(CUT + (2 + hour) * HOUR).isoformat(),
                as_of=(CUT + (2 + hour) * HOUR).isoformat(),
                horizon_end=(CUT + (14 + hour) * HOUR).isoformat(),
                confidence=0.75,
                regime="volatile",
            )
            for hour in range(200)
        ]
        predictions.write(session, rows)
        predictions.resolve(
            session, [outcome(row, label=int(number % 3 == 0)) for number, row in enumerate(rows)]
        )
