"""``alphaplus migrate``."""

from __future__ import annotations

from collections.abc import Callable

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.processes import CommandResult

pytestmark = pytest.mark.database


def tables(database_url: str) -> int:
    url = make_url(database_url)
    connection = psycopg2.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
        ((count,),) = cursor.fetchall()
    connection.close()
    return int(count)


def test_an_empty_database_is_brought_to_the_newest_migration_and_a_second_run_changes_nothing(
    empty_database_url: str, run_cli: Callable[..., CommandResult]
) -> None:
    env = {"ALPHAPLUS_DATABASE_URL": empty_database_url}
    assert tables(empty_database_url) == 0
    for _ in range(2):
        done = run_cli("migrate", env=env)
        assert (done.exit_code, done.stdout) == (0, "The database is at the newest migration.\n")
        assert tables(empty_database_url) > 12  # the design's tables and Alembic's own


def test_down_needs_a_yes_and_takes_the_tables(
    database_url: str, run_cli: Callable[..., CommandResult]
) -> None:
    before = tables(database_url)
    unasked = run_cli("migrate", "--down", "base")
    assert unasked.exit_code == 130
    assert tables(database_url) == before
    done = run_cli("migrate", "--down", "base", "--yes")
    assert (done.exit_code, done.stdout) == (0, "The database is at migration base.\n")
    assert tables(database_url) == 1


def test_a_database_that_does_not_answer_is_exit_code_4(run_cli: Callable[..., CommandResult]) -> None:
    done = run_cli("migrate", env={"ALPHAPLUS_DATABASE_URL": "postgresql://u@127.0.0.1:1/d"})
    assert done.exit_code == 4
    assert "Traceback" not in done.stderr
