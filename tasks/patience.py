"""The database as the answering path asks it: briefly, and not again at once after it failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy.orm import Session

from db.session import create_engine, transaction
from ml.errors import StoreFull, StoreUnavailable

__all__ = ["ImpatientStore"]

STATEMENT_SECONDS: Final = 1.0
"""No answer waits longer for a statement or a lock: a migration may hold a table for minutes."""
CONNECT_SECONDS: Final = 2
"""The least that libpq takes."""
PAUSE_SECONDS: Final = 1.0
PAUSE_PER_FAILURE: Final = 10.0
"""A failure that took a second is followed by ten without a try: what hangs costs at most a tenth."""

log = structlog.get_logger(__name__)


class ImpatientStore:
    """Transactions that fail soon, and for a while at once. The caches of a process share one, made there.

    Args:
        url: of the database.
        most_pause_seconds: the longest pause.
    """

    def __init__(self, url: str, *, most_pause_seconds: float) -> None:
        self._engine = create_engine(
            url,
            application_name="alphaplus inference",
            connect_seconds=CONNECT_SECONDS,
            statement_seconds=STATEMENT_SECONDS,
        )
        self._most_pause_seconds = most_pause_seconds
        self._paused_until = 0.0

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction.

        Raises:
            StoreUnavailable: the database is away, full, or took too long, now or a moment ago.
        """
        if time.monotonic() < self._paused_until:
            raise StoreUnavailable("the database failed a moment ago; not asked again yet")
        started = time.monotonic()
        try:
            with transaction(self._engine) as session:
                yield session
        except (StoreUnavailable, StoreFull) as error:
            ended = time.monotonic()
            pause = min(max(PAUSE_SECONDS, PAUSE_PER_FAILURE * (ended - started)), self._most_pause_seconds)
            self._paused_until = ended + pause
            log.warning("database_left_alone", error=str(error), pause_seconds=round(pause, 1))
            raise StoreUnavailable(str(error)) from error
