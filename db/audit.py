"""The audit log: who did what and why, in a chain of hashes that shows any change made by hand.

A row's hash covers its content and the hash before it. Triggers refuse UPDATE, DELETE and TRUNCATE;
who can switch triggers off leaves a break that ``verify`` finds. Who can also compute every later hash
anew is found by the HMAC, where a key is set, or by a head exported earlier.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.base import Json
from db.locks import lock
from db.models import AuditEntry
from ml.errors import AuditChainBroken

__all__ = [
    "GENESIS",
    "AuditEntry",
    "Head",
    "Verified",
    "append",
    "head",
    "names_artifact",
    "recent",
    "verify",
]

GENESIS = "0" * 64
"""``prev_hash`` of the first row."""

ROWS_A_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Head:
    """The newest row. Kept elsewhere, it shows later that no row up to it was changed or cut off."""

    id: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What ``verify`` found in order."""

    rows: int
    signed: int
    head: Head


def append(
    session: Session,
    *,
    action: str,
    actor: str,
    subject: str,
    why: str,
    details: Json,
    now: datetime,
    hmac_key: bytes | None = None,
) -> AuditEntry:
    """Add a row. Writers wait for each other until the transaction ends: take this lock last."""
    lock(session, "audit")
    before = head(session)
    # PostgreSQL's own text of the JSON, so that what is hashed is what will be read back.
    stored = session.scalar(sa.select(sa.cast(sa.cast(details, JSONB), sa.Text)))
    assert stored is not None
    row = AuditEntry(
        id=before.id + 1,
        at=now.astimezone(UTC),
        action=action,
        actor=actor,
        subject=subject,
        why=why,
        details=details,
        prev_hash=before.hash,
    )
    row.hash = _hash(row, stored)
    row.hmac = None if hmac_key is None else _sign(hmac_key, row.hash)
    session.add(row)
    session.flush()
    return row


def head(session: Session) -> Head:
    """The newest row; id 0 and ``GENESIS`` where there is none."""
    newest = sa.select(AuditEntry.id, AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
    found = session.execute(newest).one_or_none()
    return Head(0, GENESIS) if found is None else Head(found.id, found.hash)


def recent(session: Session, limit: int, *, subject: str | None = None) -> list[AuditEntry]:
    """The newest ``limit`` rows, newest first."""
    query = sa.select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditEntry.subject == subject)
    return list(session.scalars(query))


def names_artifact(session: Session, *, subject: str, model_id: int, sha256: str) -> bool:
    """Whether a row about this model names these bytes: what nobody decided on must not be served."""
    found = session.scalar(
        sa.select(AuditEntry.id)
        .where(
            AuditEntry.details["artifact_sha256"].astext == sha256,
            AuditEntry.subject == subject,
            AuditEntry.details["model_id"].as_integer() == model_id,
        )
        .limit(1)
    )
    return found is not None


def verify(session: Session, hmac_key: bytes | None = None, *, expected: Head | None = None) -> Verified:
    """Walk the chain from its first row.

    Args:
        session: the caller's.
        hmac_key: checks the rows' signatures as well; after the first signed row every row must be.
        expected: a head exported earlier, which must be in the chain.

    Raises:
        AuditChainBroken: names the first row that was changed, removed or inserted.
    """
    before, signed = Head(0, GENESIS), 0
    stored_details = sa.cast(AuditEntry.details, sa.Text).label("stored_details")
    query = sa.select(AuditEntry, stored_details).order_by(AuditEntry.id)
    rows = session.execute(query, execution_options={"yield_per": ROWS_A_BATCH, "populate_existing": True})
    for row, stored in rows:
        if row.id != before.id + 1:
            raise AuditChainBroken(f"row {before.id + 1} of the audit log is missing")
        if row.prev_hash != before.hash or row.hash != _hash(row, stored):
            raise AuditChainBroken(
                f"row {row.id} of the audit log ({row.action} {row.subject}) was changed by hand"
            )
        if hmac_key is not None and (row.hmac is not None or signed):
            if not hmac.compare_digest(row.hmac or "", _sign(hmac_key, row.hash)):
                raise AuditChainBroken(f"row {row.id} of the audit log is not signed with this key")
            signed += 1
        before = Head(row.id, row.hash)
        if expected is not None and expected.id == row.id and expected != before:
            raise AuditChainBroken(f"row {row.id} of the audit log is not the one exported as head")
        session.expunge(row)
    if expected is not None and expected.id > before.id:
        raise AuditChainBroken(
            f"row {before.id + 1} of the audit log is missing: it once reached {expected.id}"
        )
    return Verified(rows=before.id, signed=signed, head=before)


def _hash(row: AuditEntry, stored_details: str) -> str:
    at = row.at.astimezone(UTC).isoformat()
    content = [row.id, at, row.action, row.actor, row.subject, row.why, stored_details, row.prev_hash]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _sign(key: bytes, digest: str) -> str:
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()
