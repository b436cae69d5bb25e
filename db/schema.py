"""Bring a database to the schema that this code was written for, and check that it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from db.session import create_engine, transaction
from ml.errors import SchemaOutdated

__all__ = ["downgrade", "require_current", "run", "upgrade"]

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x416C7068615031  # "AlphaP1": any constant that nothing else uses


def upgrade(url: str, *, revision: str = "head") -> None:
    """Apply what is missing, in one transaction: all of it or nothing. Two may start at once.

    Raises:
        StoreUnavailable: PostgreSQL did not answer; nothing was changed.
        sqlalchemy.exc.DBAPIError: a migration failed, as the server said; nothing was changed.
    """
    run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, *, revision: str) -> None:
    """Take migrations back down to ``revision`` (``base``: all of them), with the data in their tables."""
    run(url, lambda config: command.downgrade(config, revision))


def require_current(engine: sa.Engine) -> None:
    """Pass if the database is at the newest migration.

    Raises:
        SchemaOutdated: it is not; names both revisions.
        StoreUnavailable: PostgreSQL did not answer.
    """
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    with transaction(engine) as session:
        found = MigrationContext.configure(session.connection()).get_current_revision()
    if found != wanted:
        raise SchemaOutdated(
            f"the database is at migration {found}, this code needs {wanted}; "
            "`alphaplus migrate` applies what is missing"
        )


def _config() -> Config:
    config = Config()
    # A percent sign in the path would be read as an interpolation by Alembic's ini parser.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def run(url: str, action: Callable[[Config], object]) -> None:
    """Run an Alembic command, such as `revision`, with the migrations of this folder on a database."""
    engine = create_engine(url, application_name="alphaplus migrate", pooled=False)
    with transaction(engine) as session:
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        config = _config()
        config.attributes["connection"] = session.connection()
        action(config)
