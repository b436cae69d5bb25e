"""What the tables refuse by themselves, whatever code writes to them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db.session import transaction
from tests.integration.db.rows import AS_OF, KEY, add_model, enqueue

pytestmark = pytest.mark.database

CANDLE = {
    "symbol": "BTCUSDT",
    "interval": "1h",
    "open_time": "2019-01-01 00:00+00",
    "known_at": "2019-01-01 01:00+00",
    "open": 10.0,
    "high": 12.0,
    "low": 9.0,
    "close": 11.0,
    "volume": 0.0,
    "source": "test",
}
PREDICTION = {
    "id": "00000000-0000-0000-0000-000000000001",
    "signal_time": "2019-01-01 00:00+00",
    "as_of": "2019-01-01 00:00+00",
    "symbol": "BTCUSDT",
    "interval": "1h",
    "regime": "trending",
    "direction": 1,
    "patterns": ["CDLDOJI"],
    "confidence": 0.6,
    "decision": "accept",
    "horizon_end": "2019-01-01 12:00+00",
}
THRESHOLD = {
    "symbol": "BTCUSDT",
    "interval": "1h",
    "regime": "trending",
    "changed_by": "test",
    "why": "test",
}


@pytest.mark.parametrize(
    ("table", "good", "changes"),
    [
        (
            "candles",
            CANDLE,
            {
                "symbol": [{"symbol": "btcusdt"}, {"symbol": "A"}, {"symbol": "../../etc"}],
                "interval": [{"interval": "2h"}],
                "high_low": [{"low": 12.5}],
                "open": [{"open": 0.0}, {"open": "NaN"}],
                "high": [{"high": "Infinity"}],
                "low": [{"low": -1.0}],
                "volume": [{"volume": -0.1}, {"volume": "NaN"}],
                "known_at": [{"known_at": "2019-01-01 00:00+00"}],
            },
        ),
        (
            "ml_performance_tracking",
            PREDICTION,
            {
                "regime": [{"regime": "sleepy"}],
                "direction": [{"direction": 0}, {"direction": 3}],
                "confidence": [{"confidence": 1.7}, {"confidence": -0.1}, {"confidence": "NaN"}],
                "pattern_confidence": [{"pattern_confidence": 1.01}],
                "decision": [{"decision": "maybe"}],
                "abstain_reason": [{"decision": "abstain"}, {"abstain_reason": "no model"}],
                "label": [{"label": 0.5, "label_end": "2019-01-01 02:00+00"}],
                "label_end": [{"label": 1.0}],
            },
        ),
        (
            "ml_drift_thresholds",
            THRESHOLD,
            {
                "symbol": [{"symbol": "?"}],
                "severities": [{"low": 0.15}, {"critical": 0.1}, {"low": 0.0}, {"critical": "NaN"}],
                "ks": [{"ks": 1.1}],
                "population_stability_index": [{"population_stability_index": 0.0}],
            },
        ),
    ],
    ids=["candles", "predictions", "thresholds"],
)
def test_row_out_of_its_limits_is_refused_by_the_check_of_that_name(
    engine: Engine,
    subtests: pytest.Subtests,
    table: str,
    good: dict[str, Any],
    changes: dict[str, list[dict[str, Any]]],
) -> None:
    for check, rows in changes.items():
        for change in rows:
            with (
                subtests.test(check, **change),
                pytest.raises(sa.exc.IntegrityError, match=f"ck_{table}_{check}"),
            ):
                _insert(engine, table, good | change)
    _insert(engine, table, good)


def _insert(engine: Engine, table: str, values: dict[str, Any]) -> None:
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in values]
    with engine.begin() as connection:
        connection.execute(sa.insert(sa.table(table, *columns)).values(values))


def test_threshold_of_a_key_is_replaced_by_ending_it_first(engine: Engine) -> None:
    _insert(engine, "ml_drift_thresholds", THRESHOLD)
    with pytest.raises(sa.exc.IntegrityError, match="uq_ml_drift_thresholds_current"):
        _insert(engine, "ml_drift_thresholds", THRESHOLD)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE ml_drift_thresholds SET valid_until = now()"))
    _insert(engine, "ml_drift_thresholds", THRESHOLD)


def test_key_has_one_open_drift_action(engine: Engine) -> None:
    with transaction(engine) as session:
        model_id = add_model(session).id
    action = {
        "model_id": model_id,
        "severity": "critical",
        "symbol": KEY.symbol,
        "interval": KEY.interval,
        "regime": KEY.regime,
        "alert_id": "00000000-0000-0000-0000-000000000001",
        "alert_as_of": AS_OF,
        "action": "retrain_now",
        "job_id": enqueue(engine),
        "as_of": AS_OF,
    }
    _insert(engine, "ml_drift_actions", action)
    with pytest.raises(sa.exc.IntegrityError, match="uq_ml_drift_actions_open"):
        _insert(engine, "ml_drift_actions", action)
    _insert(engine, "ml_drift_actions", action | {"state": "done"})


def test_model_keeps_its_artifact_and_its_history(engine: Engine) -> None:
    with transaction(engine) as session:
        add_model(session)
    for statement in ("DELETE FROM ml_model_artifacts", "TRUNCATE ml_model_artifacts"):
        with pytest.raises(sa.exc.DBAPIError, match="ml_models"), engine.begin() as connection:
            connection.execute(sa.text(statement))
