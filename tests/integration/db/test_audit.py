from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import audit
from db.audit_chain import row_hash
from db.session import transaction
from ml.errors import AuditChainBroken
from tests.integration.db.rows import race
from tests.integration.db.tampering import by_hand, tampered

pytestmark = pytest.mark.database

NOW = datetime(2019, 10, 17, 3, 4, 5, 678901, tzinfo=UTC)
KEY = b"secret"
KEY_NAME = "BTCUSDT 1h trending"


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


CONTENT = "what it holds (at, action, actor, subject, why or details) is not what its hash was made of"
SHIFT_DOWN = "UPDATE ml_audit_log SET id = id - 1 WHERE id > 3"


@dataclass(frozen=True)
class Tampering:
    """What someone with the owner's rights did, and what is said of it."""

    statements: tuple[str, ...]
    row: int
    problem: str
    more: int = 0
    holds: str | None = None
    """``why`` of the row that is named; None where the row is gone."""


def changed(assignment: str, problem: str = CONTENT, *, more: int = 0, holds: str = "reason 3") -> Tampering:
    return Tampering((f"UPDATE ml_audit_log SET {assignment} WHERE id = 3",), 3, problem, more, holds)


TAMPERINGS = {
    "why": changed("why = 'other'", holds="other"),
    "actor": changed("actor = 'someone'"),
    "action": changed("action = 'rollback'"),
    "subject": changed("subject = 'ETHUSDT 1h trending'"),
    "at": changed("at = at + interval '1 microsecond'"),
    "a number in details": changed("details = jsonb_set(details, '{f1}', '0.62')"),
    "a number's form in details": changed("details = jsonb_set(details, '{whole}', '1')"),
    "hash": changed("hash = repeat('a', 64)", "its hash; everything else is as it was", more=1),
    "prev_hash": changed("prev_hash = repeat('b', 64)", "its prev_hash; everything else is as it was"),
    "hmac": changed("hmac = repeat('c', 64)", "is not signed with this key"),
    "hmac taken off": changed("hmac = NULL", "is not signed, and rows before it are"),
    "id": Tampering(
        ("UPDATE ml_audit_log SET id = 30 WHERE id = 3",), 3, "stands under the id 30", 1, "reason 3"
    ),
    "two columns": Tampering(
        ("UPDATE ml_audit_log SET why = 'other', prev_hash = repeat('b', 64) WHERE id = 3",),
        3,
        CONTENT + "; it does not name the hash of row 2",
        holds="other",
    ),
    "deleted from the middle": Tampering(("DELETE FROM ml_audit_log WHERE id = 3",), 3, "is missing; "),
    "three deleted": Tampering(
        ("DELETE FROM ml_audit_log WHERE id BETWEEN 2 AND 4",), 2, "is missing, with all up to row 4"
    ),
    "the first deleted": Tampering(("DELETE FROM ml_audit_log WHERE id = 1",), 1, "is missing"),
    "deleted, and the gap closed": Tampering(
        ("DELETE FROM ml_audit_log WHERE id = 3", SHIFT_DOWN),
        3,
        "was written as row 4: the order was changed by hand, is missing and later ones were numbered anew",
        2,
        "reason 4",
    ),
    "deleted from the end": Tampering(
        ("DELETE FROM ml_audit_log WHERE id >= 5",), 5, "is missing, with all up to row 6: it once reached 6"
    ),
    "emptied": Tampering(
        ("TRUNCATE ml_audit_log",), 1, "is missing, with all up to row 6: it once reached 6"
    ),
    "swapped": Tampering(
        (
            "UPDATE ml_audit_log SET id = 99 WHERE id = 3",
            "UPDATE ml_audit_log SET id = 3 WHERE id = 4",
            "UPDATE ml_audit_log SET id = 4 WHERE id = 99",
        ),
        3,
        "was written as row 4: the order was changed by hand, rows 3 and 4 have changed places",
        2,
        "reason 4",
    ),
    "inserted in the middle": Tampering(
        (
            "UPDATE ml_audit_log SET id = id + 10 WHERE id > 2",
            "UPDATE ml_audit_log SET id = id - 9 WHERE id > 2",
            "INSERT INTO ml_audit_log SELECT 3, at, action, actor, subject, 'inserted', details, "
            "repeat('d', 64), repeat('e', 64), NULL FROM ml_audit_log WHERE id = 2",
        ),
        3,
        "was inserted by hand: row 4 follows row 2",
        4,
        "inserted",
    ),
    "added at the end": Tampering(
        (
            "INSERT INTO ml_audit_log SELECT 7, at, action, actor, subject, 'added', details, "
            "hash, repeat('e', 64), NULL FROM ml_audit_log WHERE id = 6",
        ),
        7,
        CONTENT,
        holds="added",
    ),
}  # fmt: skip


def test_verify_names_the_row_that_was_touched_by_hand_and_how(
    engine: Engine, subtests: pytest.Subtests
) -> None:
    for number in range(1, 7):
        append(engine, f"reason {number}", hmac_key=KEY)
    exported = head(engine)
    for name, done in TAMPERINGS.items():
        with subtests.test(name), tampered(engine, *done.statements) as session:
            _, broken = audit.examine(session, KEY, expected=exported)
            assert broken is not None
            assert (broken.id, broken.more, broken.holds and broken.holds["why"]) == (
                done.row,
                done.more,
                done.holds,
            )
            assert done.problem in "; it ".join(broken.problems)
            with pytest.raises(AuditChainBroken, match=f"^row {done.row} of the audit log "):
                audit.verify(session, KEY, expected=exported)
    assert verify(engine, KEY, exported).rows == 6


def test_row_whose_hash_was_made_anew_is_named_by_the_row_after_it(engine: Engine) -> None:
    """The hash is public: who rewrites a row can make it fit the one before, not the one after."""
    for number in range(1, 6):
        append(engine, f"reason {number}")
    with tampered(engine, "UPDATE ml_audit_log SET why = 'other' WHERE id = 3") as session:
        make_hash_anew(session, 3)
        _, broken = audit.examine(session)
        assert broken is not None
        assert (broken.id, broken.holds and broken.holds["why"]) == (3, "other")
        assert broken.problems == ("was changed by hand and its hash made anew: row 4 names the one it had",)


def test_chain_made_anew_to_its_end_is_found_by_the_signatures_and_by_an_exported_head(
    engine: Engine,
) -> None:
    for number in range(1, 6):
        append(engine, f"reason {number}", hmac_key=KEY)
    exported = head(engine)
    with tampered(engine, "UPDATE ml_audit_log SET why = 'other' WHERE id = 3") as session:
        for id_ in (3, 4, 5):
            make_hash_anew(session, id_)
        assert audit.verify(session).rows == 5  # neither key nor head: nothing to see
        with pytest.raises(AuditChainBroken, match=r"^row 3 .* not signed with this key"):
            audit.verify(session, KEY)
        with pytest.raises(AuditChainBroken, match=r"^row 5 .* not the one exported"):
            audit.verify(session, expected=exported)


def make_hash_anew(session: Session, id_: int) -> None:
    row = session.get_one(audit.AuditEntry, id_, populate_existing=True)
    if id_ > 1:
        row.prev_hash = session.get_one(audit.AuditEntry, id_ - 1).hash
    details = session.scalar(sa.text("SELECT details::text FROM ml_audit_log WHERE id = :id"), {"id": id_})
    row.hash = row_hash(row, details)
    session.flush()


def test_rows_are_listed_by_subject_and_action(engine: Engine) -> None:
    with transaction(engine) as session:
        for action, subject in (
            ("key_add", "BTCUSDT 1h"),
            ("promote", "BTCUSDT 1h all"),
            ("promote", "BTCUSDT 4h all"),
            ("promote", "BTCUSDTX 1h all"),
            ("freeze", "BTC_SDT 1h all"),
        ):
            audit.append(session, action=action, actor="me", subject=subject, why="", details={}, now=NOW)

        def ids(subject: str | None = None, action: str | None = None) -> list[int]:
            return [row.id for row in audit.recent(session, 10, subject=subject, action=action)]

        assert ids() == [5, 4, 3, 2, 1]
        assert ids("BTCUSDT") == [3, 2, 1]
        assert ids("BTCUSDT 1h") == [2, 1]
        assert ids("BTC_SDT") == [5]
        assert ids("BTCUSDT", "promote") == [3, 2]
        assert ids(action="freeze") == [5]


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


def test_log_whose_signatures_were_all_taken_off_does_not_pass_with_the_key(engine: Engine) -> None:
    for number in range(1, 4):
        append(engine, f"reason {number}", hmac_key=KEY)
    with tampered(engine, "UPDATE ml_audit_log SET actor = 'someone', hmac = NULL") as session:
        for id_ in (1, 2, 3):
            make_hash_anew(session, id_)
        assert audit.verify(session).rows == 3
        verified, broken = audit.examine(session, KEY)
        assert broken is not None
        assert (broken.id, broken.holds and broken.holds["why"], broken.more) == (3, "reason 3", 0)
        assert "no row is signed with this key" in str(broken)
        assert (verified.signed, verified.signed_from) == (0, None)


def test_key_that_was_set_after_the_newest_row_holds_from_the_next_one_on(engine: Engine) -> None:
    assert verify(engine, KEY).rows == 0  # of nothing nothing is signed
    append(engine)
    with pytest.raises(AuditChainBroken, match="the key was set after the newest row"):
        verify(engine, KEY)
    append(engine, hmac_key=KEY)
    append(engine, hmac_key=KEY)
    found = verify(engine, KEY)
    assert (found.rows, found.signed, found.signed_from) == (3, 2, 2)
