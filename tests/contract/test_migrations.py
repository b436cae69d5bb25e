"""The migrations make what the models describe, up and down, twice at once, on plain PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import db.drift_models  # its tables belong to the metadata
from db.base import Base
from db.schema import downgrade, require_current, upgrade
from db.session import create_engine
from tests.processes import ROOT

pytestmark = pytest.mark.database

VERSIONS = sorted(path.stem[:4] for path in (Path(db.__path__[0]) / "migrations" / "versions").glob("0*.py"))

MISSION_TABLES = {
    "ml_models",
    "ml_eval_history",
    "ml_training_jobs",
    "ml_performance_tracking",
    "ml_drift_alerts",
    "ml_drift_details",
    "ml_reference_features",
    "ml_drift_thresholds",
    "ml_drift_actions",
}

CATALOG = {
    "columns": """
        SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity::text,
               pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0
          AND NOT attisdropped
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "sequences": "SELECT sequencename, data_type::text FROM pg_sequences WHERE schemaname = 'public'",
    "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
}


def catalog(url: str, *kinds: str) -> dict[str, set[tuple[object, ...]]]:
    """What the server itself says of the schema; Alembic's own table left out."""
    with create_engine(url, application_name="tests", pooled=False).connect() as connection:
        return {
            kind: {
                tuple(row)
                for row in connection.execute(sa.text(CATALOG[kind]))
                if row[0] != "alembic_version"
            }
            for kind in kinds or CATALOG
        }


def test_models_and_migrated_database_agree(database_url: str) -> None:
    with create_engine(database_url, application_name="tests", pooled=False).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_models_and_migrated_database_agree_in_every_check_index_and_default(
    database_url: str, empty_database_url: str
) -> None:
    """Alembic compares neither checks nor the conditions of partial indexes."""
    engine = create_engine(empty_database_url, application_name="tests", pooled=False)
    Base.metadata.create_all(engine)
    kinds = ("columns", "constraints", "indexes", "sequences")
    assert catalog(database_url, *kinds) == catalog(empty_database_url, *kinds)


def test_every_table_of_the_mission_and_the_design_is_there(database_url: str) -> None:
    tables = {row[0] for row in catalog(database_url, "columns")["columns"]}
    upkeep = {"candles", "candle_series", "ml_model_artifacts", "ml_audit_log", "ml_keys", "ml_drift_nulls"}
    assert tables == MISSION_TABLES | upkeep


def test_up_and_down_again_leaves_nothing_and_up_gives_the_same(empty_database_url: str) -> None:
    before = catalog(empty_database_url)
    upgrade(empty_database_url)
    made = catalog(empty_database_url)
    downgrade(empty_database_url, revision="base")
    assert catalog(empty_database_url) == before
    upgrade(empty_database_url)
    assert catalog(empty_database_url) == made


def test_each_migration_can_be_taken_back_alone(empty_database_url: str) -> None:
    for revision in VERSIONS:
        upgrade(empty_database_url, revision=revision)
        made = catalog(empty_database_url)
        downgrade(empty_database_url, revision="-1")
        upgrade(empty_database_url, revision=revision)
        assert catalog(empty_database_url) == made


def test_two_processes_that_migrate_at_once_both_succeed(empty_database_url: str) -> None:
    command = [sys.executable, "-c", "import sys; from db.schema import upgrade; upgrade(sys.argv[1])"]
    processes = [
        subprocess.Popen([*command, empty_database_url], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0), ("", 0)]
    require_current(create_engine(empty_database_url, application_name="tests", pooled=False))


def test_migration_that_fails_changes_nothing(empty_database_url: str) -> None:
    engine = create_engine(empty_database_url, application_name="tests", pooled=False)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE ml_drift_actions (mine int)"))
    before = catalog(empty_database_url)
    with pytest.raises(sa.exc.ProgrammingError, match="ml_drift_actions"):
        upgrade(empty_database_url)
    assert catalog(empty_database_url) == before


def test_default_drift_limits_are_the_missions(database_url: str) -> None:
    with create_engine(database_url, application_name="tests", pooled=False).connect() as connection:
        query = "SELECT ks, population_stability_index, low, medium, high, critical FROM ml_drift_thresholds"
        assert connection.execute(sa.text(query)).all() == [(0.15, 0.25, 0.10, 0.15, 0.20, 0.30)]


def test_no_foreign_key_points_to_a_time_series_table(database_url: str) -> None:
    time_series = (
        "candles",
        "ml_performance_tracking",
        "ml_eval_history",
        "ml_drift_alerts",
        "ml_drift_details",
    )
    foreign = [
        definition
        for _, _, definition in catalog(database_url, "constraints")["constraints"]
        if str(definition).startswith("FOREIGN KEY")
    ]
    assert foreign
    assert not [d for d in foreign for table in time_series if f"REFERENCES {table}(" in str(d)]
