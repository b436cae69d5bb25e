"""The database as a command of the command line uses it: one short-lived engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ProgrammingError

from db.session import create_engine
from runtime.settings import Settings

__all__ = ["command_engine"]


@contextmanager
def command_engine(settings: Settings, *, pooled: bool = False) -> Iterator[Engine]:
    """An engine for the length of a ``with`` block.

    Args:
        settings: name the database.
        pooled: keep a connection open between transactions, for a command that goes on and on.

    Raises:
        ServersMissing: none is configured or running.
        SchemaOutdated: the database lacks a migration, and the block stumbled over it.
    """
    engine = create_engine(settings.required_database_url, application_name="alphaplus cli", pooled=pooled)
    try:
        yield engine
    except (ProgrammingError, psycopg2.ProgrammingError):
        # Most likely a missing migration. Looked at only now: Alembic takes a third of a second to import.
        from db.schema import require_current

        require_current(engine)
        raise
    finally:
        engine.dispose()
