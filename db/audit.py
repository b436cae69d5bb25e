"""The audit log: who did what and why, in a chain of hashes that shows any change made by hand.

A row's hash covers its content and the hash before it. Triggers refuse UPDATE, DELETE and TRUNCATE;
who can switch triggers off leaves a break that ``verify`` finds. Who can also compute every later hash
anew is found by the HMAC, where a key is set, or by a head exported earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.orm import Session

from db.audit_chain import GENESIS, Break, Head, Verified, entry_json, examine, row_hash, sign
from db.base import Json
from db.locks import lock
from db.models import AuditEntry, KeyRow, ModelRow
from ml.errors import AuditChainBroken

__all__ = [
    "GENESIS",
    "AuditEntry",
    "Break",
    "Head",
    "Verified",
    "append",
    "contradictions",
    "entry_json",
    "examine",
    "head",
    "names_artifact",
    "recent",
    "verify",
]

CHAMPION_ACTIONS = ("promote", "force", "rollback")
"""What a row is called that made a model champion."""


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
    row.hash = row_hash(row, stored)
    row.hmac = None if hmac_key is None else sign(hmac_key, row.hash)
    session.add(row)
    session.flush()
    return row


def head(session: Session) -> Head:
    """The newest row; id 0 and ``GENESIS`` where there is none."""
    newest = sa.select(AuditEntry.id, AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
    found = session.execute(newest).one_or_none()
    return Head(0, GENESIS) if found is None else Head(found.id, found.hash)


def recent(
    session: Session, limit: int, *, subject: str | None = None, action: str | None = None
) -> list[AuditEntry]:
    """The newest ``limit`` rows, newest first.

    Args:
        session: the caller's.
        limit: how many at most.
        subject: of this one only; ``BTCUSDT`` and ``BTCUSDT 1h`` stand for every subject that begins so.
        action: of this one only.
    """
    query = sa.select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject is not None:
        begins = AuditEntry.subject.startswith(f"{subject} ", autoescape=True)
        query = query.where(sa.or_(AuditEntry.subject == subject, begins))
    if action is not None:
        query = query.where(AuditEntry.action == action)
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


def verify(
    session: Session,
    hmac_key: bytes | None = None,
    *,
    expected: Head | None = None,
    on_row: Callable[[int], None] | None = None,
) -> Verified:
    """Walk the chain from its first row; ``examine`` gives what is wrong as values.

    Args:
        session: the caller's.
        hmac_key: checks the rows' signatures as well: at least one row must be signed, and after the first
            signed row every row.
        expected: a head exported earlier, which must be in the chain.
        on_row: called with the number of rows walked so far.

    Raises:
        AuditChainBroken: names the first row that was changed, removed or inserted, and how.
    """
    verified, broken = examine(session, hmac_key, expected=expected, on_row=on_row)
    if broken is not None:
        raise AuditChainBroken(str(broken))
    return verified


def contradictions(session: Session) -> list[str]:
    """Where the registry is not as the log's newest decisions left it, a sentence each.

    Of each key: its champion, the bytes that this is made of, and whether it is frozen. Either the registry
    was changed by hand, or rows were cut off the log's end.
    """
    return [*_other_champions(session), *_other_freezes(session)]


def _other_champions(session: Session) -> list[str]:
    decided = _newest(session, CHAMPION_ACTIONS)
    serving = {
        str(row.key): row for row in session.scalars(sa.select(ModelRow).where(ModelRow.state == "champion"))
    }
    found = []
    for subject in sorted(decided.keys() | serving.keys()):
        row, entry = serving.get(subject), decided.get(subject)
        details = {} if entry is None else entry.details
        if (None if row is None else row.id) != details.get("model_id"):
            has = "has no champion" if row is None else f"has version {row.version} as champion"
            says = (
                "knows of none" if entry is None else f"says version {details.get('version')} ({_at(entry)})"
            )
            found.append(f"{subject}: the registry {has}, the audit log {says}")
        elif row is not None and entry is not None:
            found += [
                f"{subject}: version {row.version} has the {name} {getattr(row, name)} in the registry, the "
                f"audit log says {details[name]} ({_at(entry)})"
                for name in ("artifact_sha256", "booster_sha256")
                if details.get(name, getattr(row, name)) != getattr(row, name)
            ]
    return found


def _other_freezes(session: Session) -> list[str]:
    decided = _newest(session, ("freeze", "thaw"))
    frozen = {
        str(row.key): row.frozen_at
        for row in session.scalars(sa.select(KeyRow).where(KeyRow.frozen_at.is_not(None)))
    }
    found = []
    for subject in sorted(decided.keys() | frozen.keys()):
        since, entry = frozen.get(subject), decided.get(subject)
        if since != (entry.at if entry is not None and entry.action == "freeze" else None):
            is_so = "is not frozen" if since is None else f"is frozen since {_time(since)}"
            says = "knows of no freeze"
            if entry is not None:
                word = "frozen" if entry.action == "freeze" else "thawed"
                says = f"says it was {word} at {_time(entry.at)} ({_at(entry)})"
            found.append(f"{subject}: the key {is_so}, the audit log {says}")
    return found


def _newest(session: Session, actions: Sequence[str]) -> dict[str, AuditEntry]:
    """Each subject's newest row of these actions."""
    query = (
        sa.select(AuditEntry)
        .where(AuditEntry.action.in_(actions))
        .ext(distinct_on(AuditEntry.subject))
        .order_by(AuditEntry.subject, AuditEntry.id.desc())
    )
    return {row.subject: row for row in session.scalars(query.execution_options(populate_existing=True))}


def _at(entry: AuditEntry) -> str:
    return f"row {entry.id}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
