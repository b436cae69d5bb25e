from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import audit
from db.session import transaction
from ml.errors import AuditChainBroken
from tests.integration.db.rows import race

pytestmark = pytest.mark.database

NOW = datetime(2019, 10, 17, 3, 4, 5, 678901, tzinfo=UTC)
KEY = b"secret"


def append(engine: Engine, why: str = "because", *, hmac_key: bytes | None = None) -> None:
    with transaction(engine) as session:
        audit.append(
            session,
            action="promote",
            actor="test",
            subject="BTCUSDT 1h trending",
            why=why,
            # Numbers that JSON and PostgreSQL's numeric write differently.
            details={
                "f1": 0.61,
                "large": 1e22,
                "small": 5e-324,
                "whole": 1.0,
                "text": "ü\u2028",
                "none": None,
            },
            now=NOW,
            hmac_key=hmac_key,
        )


def verify(engine: Engine, key: bytes | None = None, expected: audit.Head | None = None) -> audit.Verified:
    with transaction(engine) as session:
        return audit.verify(session, key, expected=expected)


def head(engine: Engine) -> audit.Head:
    with transaction(engine) as session:
        return audit.head(session)


def by_hand(engine: Engine, statement: str) -> None:
    """As the database's owner can: triggers off for the session."""
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        assert connection.execute(sa.text(statement)).rowcount


def test_empty_log_is_in_order(engine: Engine) -> None:
    assert verify(engine) == audit.Verified(rows=0, signed=0, head=audit.Head(0, audit.GENESIS))


def test_rows_are_chained(engine: Engine) -> None:
    for why in ("first", "second", "third"):
        append(engine, why)
    with transaction(engine) as session:
        rows = audit.recent(session, 10)
    assert [(row.id, row.why) for row in rows] == [(3, "third"), (2, "second"), (1, "first")]
    assert [row.prev_hash for row in rows] == [rows[1].hash, rows[2].hash, audit.GENESIS]
    assert rows[0].at == NOW
    assert verify(engine) == audit.Verified(rows=3, signed=0, head=audit.Head(3, rows[0].hash))


def test_eight_writers_at_once_make_one_chain(engine: Engine) -> None:
    def write(number: int) -> None:
        for _ in range(5):
            append(engine, f"writer {number}")

    race(*(partial(write, number) for number in range(8)))
    assert verify(engine).rows == 40


def test_rolled_back_row_leaves_no_gap(engine: Engine) -> None:
    append(engine)
    with transaction(engine) as session:
        audit.append(session, action="a", actor="b", subject="c", why="d", details={}, now=NOW)
        session.rollback()
    append(engine)
    assert verify(engine).rows == 2


def test_table_refuses_to_be_changed(engine: Engine, subtests: pytest.Subtests) -> None:
    append(engine)
    for statement in (
        "UPDATE ml_audit_log SET why = 'other'",
        "DELETE FROM ml_audit_log",
        "TRUNCATE ml_audit_log",
        "TRUNCATE ml_audit_log CASCADE",
    ):
        with (
            subtests.test(statement),
            pytest.raises(sa.exc.ProgrammingError, match="append-only"),
            engine.begin() as connection,
        ):
            connection.execute(sa.text(statement))
    assert verify(engine).rows == 1


def test_verify_names_the_row_that_was_changed_by_hand(engine: Engine, subtests: pytest.Subtests) -> None:
    for _ in range(4):
        append(engine)
    for assignment in (
        "why = 'other'",
        "actor = 'someone'",
        "action = 'rollback'",
        "subject = 'ETHUSDT 1h trending'",
        "at = at + interval '1 microsecond'",
        "details = jsonb_set(details, '{f1}', '0.62')",
        "details = jsonb_set(details, '{whole}', '1')",
        "hash = repeat('a', 64)",
        "prev_hash = repeat('b', 64)",
    ):
        with subtests.test(assignment), Session(engine) as session:
            session.execute(sa.text("SET LOCAL session_replication_role = replica"))
            session.execute(sa.text(f"UPDATE ml_audit_log SET {assignment} WHERE id = 3"))
            with pytest.raises(AuditChainBroken, match="row 3 "):
                audit.verify(session)
            session.rollback()
    assert verify(engine).rows == 4


def test_verify_names_the_row_that_was_removed(engine: Engine) -> None:
    for _ in range(4):
        append(engine)
    by_hand(engine, "DELETE FROM ml_audit_log WHERE id = 2")
    with pytest.raises(AuditChainBroken, match=r"row 2 .* missing"):
        verify(engine)


def test_fork_is_refused_by_the_index(engine: Engine) -> None:
    append(engine)
    append(engine)
    with pytest.raises(sa.exc.IntegrityError, match="uq_ml_audit_log_prev_hash"):
        by_hand(
            engine,
            "INSERT INTO ml_audit_log SELECT 3, at, action, actor, subject, why, details, prev_hash, "
            "repeat('c', 64), NULL FROM ml_audit_log WHERE id = 2",
        )


def test_rows_cut_off_the_end_are_found_by_an_exported_head(engine: Engine) -> None:
    for _ in range(3):
        append(engine)
    exported = head(engine)
    by_hand(engine, "DELETE FROM ml_audit_log WHERE id = 3")
    assert verify(engine).rows == 2
    with pytest.raises(AuditChainBroken, match=r"row 3 .* missing: it once reached 3"):
        verify(engine, expected=exported)
    append(engine, "another third")
    with pytest.raises(AuditChainBroken, match=r"row 3 .* not the one exported"):
        verify(engine, expected=exported)


def test_log_that_grew_holds_the_head_exported_before(engine: Engine) -> None:
    append(engine)
    exported = head(engine)
    append(engine)
    assert verify(engine, expected=exported).rows == 2


def test_signed_rows_pass_with_their_key_only(engine: Engine) -> None:
    append(engine)
    append(engine, hmac_key=KEY)
    append(engine, hmac_key=KEY)
    assert verify(engine, KEY).signed == 2
    assert verify(engine).signed == 0
    with pytest.raises(AuditChainBroken, match=r"row 2 .* not signed with this key"):
        verify(engine, b"other")


def test_unsigned_row_after_signed_ones_is_found(engine: Engine) -> None:
    """Who can write to the database but lacks the key can build a chain, not its signatures."""
    append(engine, hmac_key=KEY)
    append(engine)
    with pytest.raises(AuditChainBroken, match=r"row 2 .* not signed"):
        verify(engine, KEY)
