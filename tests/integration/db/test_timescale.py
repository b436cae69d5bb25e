"""The same migrations and queries on a real TimescaleDB: hypertables, compression, policies."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import candles, evaluations
from db.base import Base
from db.schema import downgrade, upgrade
from db.session import create_engine, transaction
from ml.candles import OHLCV, Candles
from tests.integration.db.rows import AS_OF, KEY, add_model, hourly
from tests.integration.db.test_evaluations_and_references import evaluation

pytestmark = pytest.mark.database

NOW = datetime(2020, 1, 1, tzinfo=UTC)
HYPERTABLES = {
    "candles",
    "ml_performance_tracking",
    "ml_eval_history",
    "ml_drift_alerts",
    "ml_drift_details",
}


@pytest.fixture
def timescale(timescale_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine on the migrated database, taken down to nothing afterwards."""
    monkeypatch.setattr(candles, "_stage", _stage_by_insert)
    upgrade(timescale_server)
    yield create_engine(timescale_server, application_name="tests", pooled=False)
    downgrade(timescale_server, revision="base")


def _stage_by_insert(session: Session, given: Candles) -> None:
    """COPY FROM STDIN ends the server in Node; what follows the staging is the same."""
    session.execute(candles._STAGING)
    session.execute(
        sa.text("INSERT INTO staged_candles VALUES (:open_time, :open, :high, :low, :close, :volume)"),
        [
            {"open_time": str(given.open_time[row]) + "Z"}
            | {name: float(getattr(given, name)[row]) for name in OHLCV}
            for row in range(len(given))
        ],
    )


def write(engine: Engine, given: Candles, now: datetime = NOW) -> candles.Written:
    with transaction(engine) as session:
        return candles.write(session, symbol="BTCUSDT", interval="1h", candles=given, source="a", now=now)


def read(engine: Engine, known_at: datetime = NOW) -> Candles:
    with transaction(engine) as session:
        return candles.read(session, "BTCUSDT", "1h", known_at=known_at)


def compress(engine: Engine) -> dict[str, int]:
    """Run every compression policy, as no background worker does here; compressed chunks by table."""
    jobs = sa.text("SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for job_id in connection.scalars(jobs).all():
            connection.execute(sa.text("CALL run_job(:job_id)"), {"job_id": job_id})
        chunks = sa.text(
            "SELECT hypertable_name AS name, count(*) AS compressed FROM timescaledb_information.chunks "
            "WHERE is_compressed GROUP BY hypertable_name"
        )
        return {row.name: row.compressed for row in connection.execute(chunks)}


def test_time_series_tables_are_hypertables_with_a_policy_and_no_retention(timescale: Engine) -> None:
    with timescale.connect() as connection:
        found = connection.execute(
            sa.text("SELECT hypertable_name, compression_enabled FROM timescaledb_information.hypertables")
        ).all()
        policies = connection.execute(
            sa.text(
                "SELECT hypertable_name, proc_name, config ->> 'compress_after' "
                "FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL"
            )
        ).all()
    assert {tuple(row) for row in found} == {(table, True) for table in HYPERTABLES}
    assert {tuple(row) for row in policies} == {(t, "policy_compression", "35 days") for t in HYPERTABLES}


def test_models_and_migrated_database_agree(timescale: Engine) -> None:
    with timescale.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_down_and_up_again_leaves_hypertables_once(timescale: Engine, timescale_server: str) -> None:
    downgrade(timescale_server, revision="base")
    with timescale.connect() as connection:
        query = "SELECT count(*) FROM timescaledb_information.hypertables"
        assert connection.scalar(sa.text(query)) == 0
    upgrade(timescale_server)
    with timescale.connect() as connection:
        assert connection.scalar(sa.text(query)) == len(HYPERTABLES)


def test_candles_of_many_chunks_are_the_same_before_and_after_compression(timescale: Engine) -> None:
    given = hourly(24 * 400, start="2018-01-01")
    assert write(timescale, given) == candles.Written(inserted=9600, revised=0, unchanged=0)
    assert compress(timescale)["candles"] >= 2
    found = read(timescale)
    for name in ("open_time", *OHLCV):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))


def test_revision_and_late_candle_reach_a_compressed_chunk(timescale: Engine) -> None:
    given = hourly(100, start="2018-01-01")
    write(timescale, given.slice(0, 99))
    before = fingerprint(timescale, NOW)
    compress(timescale)
    late = Candles("1h", given.open_time, given.open, given.high, given.low, given.close + 0.5, given.volume)
    result = write(timescale, late.slice(98, 100), now=NOW + timedelta(hours=1))
    assert result == candles.Written(inserted=1, revised=1, unchanged=0)
    assert read(timescale).close[-2:].tolist() == [given.close[98], late.close[99]]
    assert read(timescale, NOW + timedelta(hours=1)).close[-2:].tolist() == late.close[98:].tolist()
    assert write(timescale, late.slice(98, 100)).unchanged == 2
    assert fingerprint(timescale, NOW) != before


def fingerprint(engine: Engine, known_at: datetime) -> dict[str, str]:
    with transaction(engine) as session:
        return candles.fingerprint(session, "1h", known_at=known_at)


def test_outcome_is_written_to_a_compressed_prediction(timescale: Engine) -> None:
    insert = sa.text(
        "INSERT INTO ml_performance_tracking (id, signal_time, as_of, symbol, interval, regime, direction, "
        "patterns, decision, horizon_end) VALUES (gen_random_uuid(), :time, :time, 'BTCUSDT', '1h', "
        "'trending', 1, '{CDLDOJI}', 'accept', :time)"
    )
    with timescale.begin() as connection:
        connection.execute(insert, {"time": datetime(2019, 1, 1, tzinfo=UTC)})
    assert compress(timescale)["ml_performance_tracking"] == 1
    with timescale.begin() as connection:
        connection.execute(
            sa.text("UPDATE ml_performance_tracking SET label = 1, label_end = as_of, resolved_at = as_of")
        )
        query = sa.text("SELECT label FROM ml_performance_tracking WHERE resolved_at IS NOT NULL")
        assert connection.scalars(query).all() == [1.0]


def test_evaluation_is_recorded_once_in_a_compressed_chunk_too(timescale: Engine) -> None:
    def record(session: Session, model_id: int) -> bool:
        return evaluations.record(
            session,
            key=KEY,
            model_id=model_id,
            kind="challenger",
            evaluation=evaluation(0.55),
            as_of=AS_OF,
            job_id="job",
        )

    with transaction(timescale) as session:
        model_id = add_model(session).id
        assert record(session, model_id)
    assert compress(timescale)["ml_eval_history"] == 1
    with transaction(timescale) as session:
        assert not record(session, model_id)
        assert [row.f1 for row in evaluations.recent(session, KEY, 5)] == [0.55]
