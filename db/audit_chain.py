"""The audit log's chain of hashes: how a row's is made, and what is wrong where it does not hold."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.base import Json
from db.models import AuditEntry

__all__ = ["GENESIS", "Break", "Head", "Verified", "entry_json", "examine", "row_hash", "sign"]

GENESIS = "0" * 64
"""``prev_hash`` of the first row."""
ROWS_A_BATCH = 1000
IDS_TRIED = 1000
"""A row is looked for among this many ids on either side of the one that it has."""

STORED_DETAILS = sa.cast(AuditEntry.details, sa.Text).label("stored_details")
"""PostgreSQL's own text of the JSON, which is what was hashed."""

NO_SIGNATURE = (
    "is the newest, and no row is signed with this key: signed rows were removed or written anew, or the key "
    "was set after the newest row. If it was, the next change is signed and ends this; until then verify "
    "without the key"
)
"""Of a log without any signature, where there is a key."""

Fault = Literal["gap", "link", "content", "unsigned", "signature", "head"]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest row. Kept elsewhere, it shows later that no row up to it was changed or cut off."""

    id: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """How far the chain was walked."""

    rows: int
    signed: int
    """Rows whose signature was checked."""
    head: Head
    signed_from: int | None = None
    """The first of them: what stands before it is vouched for by its signature alone."""
    unchecked: int = 0
    """Signed rows whose signature was not checked, for want of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """The first row that does not fit, and everything that is wrong with it."""

    id: int
    problems: tuple[str, ...]
    holds: Json | None
    """What the row holds now; None where it is missing."""
    more: int
    """Later rows that do not fit either."""

    def __str__(self) -> str:
        what = "" if self.holds is None else " ({action} {subject})".format_map(self.holds)
        rows = "row" if self.more == 1 else "rows"
        more = f"; {self.more} later {rows} break the chain as well" if self.more else ""
        return f"row {self.id} of the audit log{what} {'; it '.join(self.problems)}{more}"

    def as_json(self) -> Json:
        """Plain values."""
        return {"row": self.id, "problems": list(self.problems), "holds": self.holds, "more": self.more}


@dataclass(frozen=True, slots=True)
class _Faulty:
    """A row as read, what comes before it, and which checks it failed."""

    row: AuditEntry
    details: str
    before: Head
    faults: frozenset[Fault]


def row_hash(row: AuditEntry, details: str, *, id_: int | None = None, prev_hash: str | None = None) -> str:
    """The sha256 of a row's content and the hash before it.

    Args:
        row: which.
        details: PostgreSQL's own text of its details.
        id_: in place of the row's own.
        prev_hash: in place of the row's own.
    """
    at = row.at.astimezone(UTC).isoformat()
    number, before = row.id if id_ is None else id_, prev_hash or row.prev_hash
    content = [number, at, row.action, row.actor, row.subject, row.why, details, before]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def sign(key: bytes, digest: str) -> str:
    """The HMAC of a row's hash."""
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()


def entry_json(row: AuditEntry) -> Json:
    """A row as plain values."""
    columns = {column.key: getattr(row, column.key) for column in AuditEntry.__mapper__.column_attrs}
    return columns | {"at": row.at.astimezone(UTC).isoformat()}


def examine(
    session: Session,
    hmac_key: bytes | None = None,
    *,
    expected: Head | None = None,
    on_row: Callable[[int], None] | None = None,
) -> tuple[Verified, Break | None]:
    """Walk the chain from its first row to its last.

    Args:
        session: the caller's.
        hmac_key: checks the rows' signatures as well: at least one row must be signed, and after the first
            signed row every row.
        expected: a head exported earlier, which must be in the chain.
        on_row: called with the number of rows walked so far.

    Returns:
        How far, and the first break; None where everything is in order.
    """
    before, rows, signed, unchecked, more = Head(0, GENESIS), 0, 0, 0, 0
    first: _Faulty | None = None
    signed_from: int | None = None
    for row, details in _read(session):
        faults = _faults(row, details, before, expected)
        if hmac_key is None:
            unchecked += row.hmac is not None
        elif row.hmac is not None or signed:
            signed, signed_from = signed + 1, signed_from or row.id
            faults |= _signature_faults(row, hmac_key)
        if faults and first is None:
            first = _Faulty(row, details, before, frozenset(faults))
        elif faults:
            more += 1
        before, rows = Head(row.id, row.hash), rows + 1
        if on_row is not None:
            on_row(rows)
    verified = Verified(rows=rows, signed=signed, head=before, signed_from=signed_from, unchecked=unchecked)
    if first is not None:
        return verified, _diagnose(session, first, more, expected)
    if expected is not None and expected.id > before.id:
        missing = _missing(before.id + 1, expected.id)
        problem = f"{missing}: it once reached {expected.id}"
        return verified, Break(id=before.id + 1, problems=(problem,), holds=None, more=0)
    if hmac_key is not None and rows and not signed:
        newest = session.scalars(_plain_row(AuditEntry.id == before.id)).one()
        return verified, Break(id=before.id, problems=(NO_SIGNATURE,), holds=entry_json(newest), more=0)
    return verified, None


def _read(session: Session) -> Iterator[tuple[AuditEntry, str]]:
    """Every row by its id, with PostgreSQL's text of its details; none stays in the session."""
    query = sa.select(AuditEntry, STORED_DETAILS).order_by(AuditEntry.id)
    options = {"yield_per": ROWS_A_BATCH, "populate_existing": True}
    for row, text in session.execute(query, execution_options=options):
        session.expunge(row)
        yield row, text


def _faults(row: AuditEntry, details: str, before: Head, expected: Head | None) -> set[Fault]:
    checks: dict[Fault, bool] = {
        "gap": row.id == before.id + 1,
        "link": row.prev_hash == before.hash,
        "content": row.hash == row_hash(row, details),
        "head": expected is None or expected.id != row.id or expected.hash == row.hash,
    }
    return {fault for fault, passed in checks.items() if not passed}


def _signature_faults(row: AuditEntry, key: bytes) -> set[Fault]:
    if row.hmac is None:
        return {"unsigned"}
    return set() if hmac.compare_digest(row.hmac, sign(key, row.hash)) else {"signature"}


def _diagnose(session: Session, found: _Faulty, more: int, expected: Head | None) -> Break:
    row, faults = found.row, found.faults
    if "gap" in faults:
        return _diagnose_gap(session, found, more)
    if faults & {"link", "content"}:
        after = session.scalar(_plain_row(AuditEntry.id == row.id + 1))
        if faults & {"link", "content"} == {"link"}:
            blamed, problems = _diagnose_link(found, after)
            if blamed != row.id:
                held = session.scalars(_plain_row(AuditEntry.id == blamed)).one()
                return Break(id=blamed, problems=problems, holds=entry_json(held), more=more)
        else:
            problems = _diagnose_content(session, found, after)
    else:
        problems = ()
    told = {
        "unsigned": "is not signed, and rows before it are",
        "signature": "is not signed with this key: another key, or it was rewritten with every later hash",
        "head": f"is not the one exported as head, whose hash is {expected.hash if expected else ''}",
    }
    problems += tuple(text for fault, text in told.items() if fault in faults)
    return Break(id=row.id, problems=problems, holds=entry_json(row), more=more)


def _diagnose_gap(session: Session, found: _Faulty, more: int) -> Break:
    """An id is not there: its row was removed, or stands under another."""
    id_ = found.before.id + 1
    moved = session.execute(_with_details(AuditEntry.prev_hash == found.before.hash)).one_or_none()
    if moved is not None and row_hash(*moved, id_=id_) == moved[0].hash:
        problem = f"stands under the id {moved[0].id}: its id was changed"
        return Break(id=id_, problems=(problem,), holds=entry_json(moved[0]), more=more)
    problem = _missing(id_, found.row.id - 1) + f"; the next there is is row {found.row.id}"
    return Break(id=id_, problems=(problem,), holds=None, more=more)


def _diagnose_link(found: _Faulty, after: AuditEntry | None) -> tuple[int, tuple[str, ...]]:
    """The row agrees with itself, but not with the one before: which row is to blame, and for what."""
    row, before = found.row, found.before
    if after is not None and after.prev_hash == before.hash:
        return row.id, (f"was inserted by hand: row {after.id} follows row {before.id}",)
    if before.id and after is not None and after.prev_hash == row.hash:
        told = f"was changed by hand and its hash made anew: row {row.id} names the one it had"
        return before.id, (told,)
    if after is not None:
        return row.id, ("was changed by hand, and its hash and prev_hash made anew",)
    rewritten = f", or row {before.id} was changed and its hash made anew" if before.id else ""
    return row.id, (
        f"does not follow {_name(before)}, whose hash it does not name: it was inserted or changed by hand"
        + rewritten,
    )


def _diagnose_content(session: Session, found: _Faulty, after: AuditEntry | None) -> tuple[str, ...]:
    """The row's hash is not that of its content."""
    row, details, before = found.row, found.details, found.before
    written_as = _written_as(row, details)
    if written_as is not None:
        return (_moved(session, row, written_as),)
    if row.hash == row_hash(row, details, prev_hash=before.hash):
        return ("was changed by hand: its prev_hash; everything else is as it was written",)
    if after is not None and after.prev_hash == row_hash(row, details):
        return ("was changed by hand: its hash; everything else is as it was written",)
    if after is not None and after.prev_hash == before.hash:
        return (f"was inserted by hand: row {after.id} follows row {before.id}",)
    content = "was changed by hand: what it holds (at, action, actor, subject, why or details) is not what "
    problems: tuple[str, ...] = (content + "its hash was made of",)
    if "link" in found.faults:
        problems += (f"does not name the hash of {_name(before)}",)
    if after is not None and after.prev_hash != row.hash:
        problems += (f"has another hash than row {after.id} names",)
    return problems


def _written_as(row: AuditEntry, details: str) -> int | None:
    """The id that the row's hash was made with, where that is another one near by."""
    near = range(max(1, row.id - IDS_TRIED), row.id + IDS_TRIED + 1)
    return next((id_ for id_ in near if row_hash(row, details, id_=id_) == row.hash), None)


def _moved(session: Session, row: AuditEntry, written_as: int) -> str:
    told = f"was written as row {written_as}: the order was changed by hand"
    there = session.execute(_with_details(AuditEntry.id == written_as)).one_or_none()
    if there is not None and _written_as(*there) == row.id:
        return f"{told}, rows {row.id} and {written_as} have changed places"
    if written_as > row.id:
        return f"{told}, {_missing(row.id, written_as - 1)} and later ones were numbered anew"
    return told


def _missing(first: int, last: int) -> str:
    return "is missing" if first == last else f"is missing, with all up to row {last}"


def _name(head: Head) -> str:
    return f"row {head.id}" if head.id else "the chain's beginning"


def _with_details(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return _plain_row(condition).add_columns(STORED_DETAILS)


def _plain_row(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(AuditEntry).where(condition).execution_options(populate_existing=True)
