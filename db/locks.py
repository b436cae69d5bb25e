"""Advisory locks by name, held to the end of the transaction."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

__all__ = ["lock"]


def lock(session: Session, *names: str) -> None:
    """Wait for, and take, the lock of these names. Names that share a 64-bit hash share a lock and only wait.

    To keep clear of deadlocks take them in this order: training key, job rows, model key, audit log.
    """
    name = "/".join(names)
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))
