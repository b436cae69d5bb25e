"""What somebody who owns the audit log's table can do to it, whatever its triggers say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

__all__ = ["by_hand", "tampered"]


@contextmanager
def tampered(engine: Engine, *statements: str) -> Iterator[Session]:
    """As the table's owner can: triggers off, and nobody sees it. Undone at the end."""
    with Session(engine) as session:
        session.execute(sa.text("ALTER TABLE ml_audit_log DISABLE TRIGGER USER"))
        for statement in statements:
            session.execute(sa.text(statement))
        yield session
        session.rollback()


def by_hand(engine: Engine, statement: str) -> None:
    """As the table's owner can, for good."""
    with tampered(engine) as session:
        assert session.execute(sa.text(statement)).rowcount  # type: ignore[attr-defined]
        session.execute(sa.text("ALTER TABLE ml_audit_log ENABLE TRIGGER USER"))
        session.commit()
