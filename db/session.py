"""Engines and transactions. A task opens one transaction; repositories never commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from ml.errors import StoreFull, StoreUnavailable

__all__ = ["create_engine", "transaction"]

CONNECT_TIMEOUT_SECONDS = 5


def create_engine(
    url: str,
    *,
    application_name: str,
    pooled: bool = True,
    connect_seconds: int = CONNECT_TIMEOUT_SECONDS,
    statement_seconds: float | None = None,
) -> sa.Engine:
    """An engine that checks a pooled connection before it hands it out. Connects to nothing yet.

    Make it after the fork: two processes on one connection read each other's answers.

    Args:
        url: ``postgresql://`` or ``postgresql+psycopg2://``.
        application_name: shown in ``pg_stat_activity``.
        pooled: False opens and closes a connection for each transaction, for short commands.
        connect_seconds: how long a connection may take, 2 at least.
        statement_seconds: how long a statement may take, and wait for a lock; None for ever.
    """
    session_options = "-c timezone=UTC"
    if statement_seconds is not None:
        most = round(1000 * statement_seconds)
        session_options += f" -c statement_timeout={most} -c lock_timeout={most}"
    options: dict[str, object] = {} if pooled else {"poolclass": NullPool}
    return sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg2"),
        pool_pre_ping=True,
        connect_args={
            "application_name": application_name,
            "connect_timeout": connect_seconds,
            # A half-open connection would hang a worker; keepalives find it in about 25 s.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # Keepalives wait while sent data is unacknowledged; this bounds that wait, too.
            "tcp_user_timeout": 25_000,  # ms
            # PostgreSQL may be set to local time; rows are compared and printed in UTC.
            "options": session_options,
        },
        **options,
    )


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[Session]:
    """A session that commits when the block ends, and rolls back when it raises.

    Objects stay readable after the commit.

    Raises:
        StoreFull: the disk or memory is used up, or a limit of PostgreSQL's is passed.
        StoreUnavailable: PostgreSQL did not answer, ended the connection, or gave the transaction
            up (deadlock, time-out): nothing was committed, unless the connection broke during
            COMMIT itself, when nobody knows; so what the block does must bear a second run.
    """
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise _failure(error.orig if isinstance(error, DBAPIError) else error) from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:  # COPY goes past SQLAlchemy
        raise _failure(error) from error


def _failure(error: BaseException | None) -> StoreFull | StoreUnavailable:
    """Which of ours the driver's error is, in its own words: SQLAlchemy's hold the parameters as well."""
    # https://www.postgresql.org/docs/current/errcodes-appendix.html: resources used up, limits passed.
    code = getattr(error, "pgcode", None) or ""
    lasting = code.startswith(("53", "54")) and code != "53300"  # too many connections pass
    return (StoreFull if lasting else StoreUnavailable)(str(error).strip())
