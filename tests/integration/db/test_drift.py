"""Drift checks in their tables: each once, with its features, found again by key, severity and time."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import drift, predictions, registry
from db.drift_models import DriftAlert, DriftDetail
from db.session import transaction
from ml.alarms import DriftCheck, FeatureDrift, SeverityLimits
from ml.keys import REGIMES, ModelKey
from tests.integration.db.prediction_rows import outcome, write
from tests.integration.db.prediction_rows import record as prediction
from tests.integration.db.rows import AS_OF, KEY, add_model, race, save_drift

pytestmark = pytest.mark.drift

HOUR = timedelta(hours=1)
ETH = ModelKey("ETHUSDT", "1h", "trending")
LIMITS = SeverityLimits()


def feature(name: str, **changes: object) -> FeatureDrift:
    made = FeatureDrift(name=name, importance=0.25, ks=0.2, psi=0.3, p_value=0.01, excess=1.5, drifted=True)
    return replace(made, **changes)  # type: ignore[arg-type]


CHECK = DriftCheck(
    kind="features",
    score=0.31,
    p_value=0.002,
    reference_rows=4321,
    current_rows=250,
    statistic=2.5,
    level=1.6,
    # The order is the check's: the most important first, not the alphabet's.
    features=(feature("rsi"), feature("adx", excess=0.5, drifted=False), feature("atr", excess=0.0)),
    details={"since": "2019-10-01"},
)


def scores(score: float) -> DriftCheck:
    return replace(CHECK, kind="scores", score=score, features=(), p_value=None)


@pytest.fixture
def model(engine: Engine) -> int:
    with transaction(engine) as session:
        return champion(session)


def champion(session: Session, key: ModelKey = KEY) -> int:
    row = add_model(session, key)
    save_drift(session, row.id)
    registry.promote(session, row.id, now=AS_OF, actor="test", why="test", details={})
    return row.id


def record(
    session: Session,
    model: int,
    check: DriftCheck = CHECK,
    severity: str = "critical",
    *,
    key: ModelKey = KEY,
    as_of: datetime = AS_OF,
) -> UUID | None:
    return drift.record(session, key, model, check, severity, as_of=as_of, limits=LIMITS, snoozed_until=None)


def test_a_check_is_read_back_with_its_features_in_its_own_order(engine: Engine, model: int) -> None:
    until = AS_OF + timedelta(days=7)
    with transaction(engine) as session:
        found = drift.record(
            session, KEY, model, CHECK, "critical", as_of=AS_OF, limits=LIMITS, snoozed_until=until
        )
    assert found is not None
    with transaction(engine) as session:
        alert = drift.get_alert(session, found)
        assert alert is not None
        assert (alert.key, alert.model_id, alert.kind, alert.severity) == (KEY, model, "features", "critical")
        assert (alert.drift_score, alert.p_value, alert.as_of) == (0.31, 0.002, AS_OF)
        assert (alert.reference_rows, alert.current_rows, alert.snoozed_until) == (4321, 250, until)
        assert alert.details == {"since": "2019-10-01", "statistic": 2.5, "level": 1.6}
        assert alert.limits == {
            "ks": 0.15, "psi": 0.25, "low": 0.1, "medium": 0.15, "high": 0.2, "critical": 0.3
        }  # fmt: skip
        rows = drift.details(session, alert)
        assert [row.feature for row in rows] == ["rsi", "adx", "atr"]
        assert [(row.ks, row.population_stability_index, row.p_value, row.importance) for row in rows] == [
            (0.2, 0.3, 0.01, 0.25)
        ] * 3
        assert [row.details for row in rows] == [
            {"excess": 1.5, "drifted": True, "rank": 1},
            {"excess": 0.5, "drifted": False, "rank": 2},
            {"excess": 0.0, "drifted": True, "rank": 3},
        ]


def test_a_second_record_of_one_check_changes_nothing(engine: Engine, model: int) -> None:
    with transaction(engine) as session:
        assert record(session, model) is not None
    with transaction(engine) as session:
        before = _everything(session)
    with transaction(engine) as session:
        assert record(session, model, replace(CHECK, score=0.9), "none") is None
    with transaction(engine) as session:
        assert _everything(session) == before
        assert len(before) == 4


def _everything(session: Session) -> list[str]:
    """Every row, xmin included: even one written again with equal values shows."""
    tables = ("ml_drift_alerts", "ml_drift_details")
    query = "SELECT xmin || ' ' || t::text FROM {} AS t ORDER BY 1"
    return [text for table in tables for text in session.scalars(sa.text(query.format(table)))]


def test_of_two_that_record_a_check_at_once_one_does(engine: Engine, model: int) -> None:
    def contender() -> UUID | None:
        with transaction(engine) as session:
            return record(session, model)

    found = race(contender, contender)
    assert sorted(one is None for one in found) == [False, True]
    with transaction(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(DriftAlert)) == 1
        assert session.scalar(sa.select(sa.func.count()).select_from(DriftDetail)) == 3


def test_a_check_is_one_statement_for_itself_and_one_for_its_features(engine: Engine, model: int) -> None:
    sent: list[str] = []
    with transaction(engine) as session:
        event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        record(session, model)
    assert [text.split("(")[0].strip() for text in sent] == [
        "INSERT INTO ml_drift_alerts", "INSERT INTO ml_drift_details"
    ]  # fmt: skip


def test_the_id_tells_key_model_kind_and_candle_apart_and_not_the_zone_of_a_time() -> None:
    def made(key: ModelKey = KEY, model: int = 1, kind: str = "features", as_of: datetime = AS_OF) -> UUID:
        return drift.alert_id(key, model, kind, as_of)

    others = {made(ETH), made(model=2), made(kind="scores"), made(as_of=AS_OF + HOUR)}
    assert len({made(), *others}) == 5
    assert made(as_of=datetime.fromisoformat("2019-10-17T02:00+02:00")) == made()


def test_alerts_are_found_by_key_severity_and_time_the_newest_first(engine: Engine, model: int) -> None:
    with transaction(engine) as session:
        other = champion(session, ETH)
        for hour, score, severity in ((0, 0.05, "none"), (1, 0.25, "high"), (2, 0.4, "critical")):
            record(session, model, scores(score), severity, as_of=AS_OF + hour * HOUR)
        record(session, other, scores(0.3), "high", key=ETH, as_of=AS_OF + 3 * HOUR)

        def found(**chosen: object) -> list[float]:
            options = {"limit": 10, **chosen}
            return [row.drift_score for row in drift.recent_alerts(session, **options)]  # type: ignore[arg-type]

        assert found(key=KEY) == [0.4, 0.25, 0.05]
        assert found(key=KEY, limit=2) == [0.4, 0.25]
        assert found(severities=["high", "critical"]) == [0.3, 0.4, 0.25]
        assert found(key=KEY, severities=["high"]) == [0.25]
        assert found(since=AS_OF + 2 * HOUR) == [0.3, 0.4]


def test_the_newest_check_is_every_kind_of_it_the_highest_score_first(engine: Engine, model: int) -> None:
    with transaction(engine) as session:
        assert drift.newest_check(session, KEY) == []
        record(session, model, replace(CHECK, kind="accuracy", score=0.9))
        for kind, score in (("features", 0.1), ("scores", 0.3), ("calibration", 0.2)):
            record(session, model, replace(scores(score), kind=kind), as_of=AS_OF + HOUR)  # type: ignore[arg-type]
        other = champion(session, ETH)
        record(session, other, scores(0.7), key=ETH)

        newest = drift.newest_check(session, KEY)
        assert [row.kind for row in newest] == ["scores", "calibration", "features"]
        assert [row.drift_score for row in drift.newest_alerts(session)] == [0.3, 0.2, 0.1, 0.7]
        assert drift.checked_until(session, KEY, model) == AS_OF + HOUR
        assert drift.checked_until(session, KEY, other) is None


def test_after_a_promotion_the_same_candles_are_checked_again_and_that_is_the_newest_check(
    engine: Engine, model: int
) -> None:
    with transaction(engine) as session:
        record(session, model, scores(0.4))
        record(session, model, replace(scores(0.4), kind="accuracy"))
    with transaction(engine) as session:
        record(session, champion(session), scores(0.1))
    with transaction(engine) as session:
        assert [row.drift_score for row in drift.newest_check(session, KEY)] == [0.1]


def test_matured_outcomes_are_the_champions_own_live_ones_each_signal_once(
    engine: Engine, model: int
) -> None:
    with transaction(engine) as session:
        other = champion(session)
    own: dict[str, Any] = {"model_id": model}
    counted = [
        at(0, **own, as_of=at(0)["signal_time"], confidence=0.6),
        at(1, **own, as_of=at(1)["signal_time"], confidence=0.7, regime="volatile"),
        at(1, **own, as_of=at(1)["signal_time"], confidence=0.2, direction=-1, regime="all"),
    ]
    left_out = [
        at(0, **own, as_of=at(1)["signal_time"], confidence=0.9),  # asked again
        at(2, **own, as_of=at(2)["signal_time"], role="shadow"),
        at(2, model_id=other, as_of=at(2)["signal_time"]),
        at(2, **own, as_of=at(3, minutes=1)["signal_time"]),  # given late
        at(-1, **own, as_of=at(-1)["signal_time"]),  # before `since`
        at(4, **own, as_of=at(4)["signal_time"]),  # its horizon ends after `until`
        at(
            2,
            **own,
            as_of=at(2)["signal_time"],
            confidence=None,
            decision="abstain",
            abstain_reason="no_model",
        ),
    ]
    still_open = at(2, **own, as_of=at(2)["signal_time"], confidence=0.8)
    write(engine, *counted, *left_out, still_open)
    with transaction(engine) as session:
        # Oldest first, long before short: the labels follow the times.
        predictions.resolve(
            session, [outcome(row, label=label) for row, label in zip(counted, (1, 0, 1), strict=True)]
        )
        predictions.resolve(session, [outcome(row, label=1) for row in left_out])
    with transaction(engine) as session:
        found = drift.matured(session, KEY, model, since=AS_OF, until=AS_OF + 15 * HOUR, live=HOUR)
        nothing = drift.matured(session, ETH, model, since=AS_OF, until=AS_OF + 15 * HOUR, live=HOUR)
    assert found.confidence.tolist() == [0.6, 0.2, 0.7]
    assert found.label.tolist() == [1.0, 1.0, 0.0]
    assert found.regime.tolist() == [0, -1, REGIMES.index("volatile")]
    assert found.regime.dtype == np.dtype(np.int8)
    hours = (found.signal_time - np.datetime64("2019-10-17", "us")) / np.timedelta64(1, "h")
    assert hours.tolist() == [0.0, 1.0, 1.0]
    assert (len(nothing.label), nothing.signal_time.dtype) == (0, np.dtype("datetime64[us]"))


def at(hours: int, minutes: int = 0, **changes: Any) -> dict[str, Any]:
    moment = AS_OF + timedelta(hours=hours, minutes=minutes)
    return prediction(signal_time=moment.isoformat(), horizon_end=(moment + 12 * HOUR).isoformat(), **changes)
