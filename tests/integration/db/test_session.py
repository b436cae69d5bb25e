from __future__ import annotations

import io

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from db.schema import downgrade, require_current, upgrade
from db.session import create_engine, transaction
from ml.errors import SchemaOutdated, StoreUnavailable

pytestmark = pytest.mark.database


def test_transaction_that_raises_leaves_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE scratch (id int)"))
    with pytest.raises(RuntimeError), transaction(engine) as session:
        session.execute(sa.text("INSERT INTO scratch VALUES (1)"))
        raise RuntimeError
    with transaction(engine) as session:
        assert session.scalar(sa.text("SELECT count(*) FROM scratch")) == 0


def test_server_that_does_not_answer_is_unavailable_and_its_password_is_not_told() -> None:
    engine = create_engine("postgresql://someone:secret-word@127.0.0.1:1/none", application_name="tests")
    with pytest.raises(StoreUnavailable) as failure, transaction(engine) as session:
        session.execute(sa.text("SELECT 1"))
    assert "secret-word" not in str(failure.value)
    with pytest.raises(StoreUnavailable):
        require_current(engine)
    with pytest.raises(StoreUnavailable):
        upgrade("postgresql://someone:secret-word@127.0.0.1:1/none")


def test_connection_ended_by_the_server_is_unavailable_once_and_then_made_anew(engine: Engine) -> None:
    with pytest.raises(StoreUnavailable), transaction(engine) as session:
        session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with transaction(engine) as session:
        assert session.scalar(sa.text("SELECT 1")) == 1


def test_connection_ended_during_copy_is_unavailable_too(engine: Engine) -> None:
    with pytest.raises(StoreUnavailable), transaction(engine) as session:
        raw = session.connection().connection.driver_connection
        assert raw is not None
        raw.cursor().copy_expert(
            "COPY (SELECT pg_terminate_backend(pg_backend_pid())) TO STDOUT", io.StringIO()
        )


def test_times_come_back_in_utc_whatever_the_database_says(engine: Engine, database_url: str) -> None:
    name = make_url(database_url).database
    with engine.begin() as connection:
        connection.execute(sa.text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'"))
    fresh = create_engine(database_url, application_name="tests", pooled=False)
    with transaction(fresh) as session:
        assert session.scalar(sa.text("SELECT CAST('2019-01-01 00:00+00' AS timestamptz)::text")) == (
            "2019-01-01 00:00:00+00"
        )


def test_current_schema_passes_and_an_older_one_says_what_to_run(engine: Engine, database_url: str) -> None:
    require_current(engine)
    downgrade(database_url, revision="0001")
    with pytest.raises(SchemaOutdated, match="at migration 0001"):
        require_current(engine)
    downgrade(database_url, revision="base")
    with pytest.raises(SchemaOutdated, match="at migration None"):
        require_current(engine)
