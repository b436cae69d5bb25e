"""The models: every one ever trained, which one answers for a key, and how it came to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db import audit
from db.base import Json
from db.locks import lock
from db.models import ModelRow
from ml.keys import ModelKey

__all__ = ["ModelRow", "add", "by_id", "champion", "find_by_artifact", "get", "models", "promote"]


def add(
    session: Session,
    *,
    key: ModelKey,
    artifact_sha256: str,
    booster_sha256: str,
    job_id: str | None,
    as_of: datetime,
    data_cut: datetime,
    config: Json,
    config_digest: str,
    metrics: Json,
    decision: Json,
    state: Literal["candidate", "shadow", "rejected"],
    metadata: Json,
) -> ModelRow:
    """Register a model under the key's next version.

    Raises:
        sqlalchemy.exc.IntegrityError: the key has a model of these bytes (``find_by_artifact`` knows),
            or the artifact is not stored.
    """
    _lock(session, key)
    newest = session.scalar(sa.select(sa.func.max(ModelRow.version)).where(*ModelRow.of_key(key)))
    row = ModelRow(
        symbol=key.symbol,
        interval=key.interval,
        regime=key.regime,
        version=(newest or 0) + 1,
        state=state,
        artifact_sha256=artifact_sha256,
        booster_sha256=booster_sha256,
        job_id=job_id,
        as_of=as_of,
        data_cut=data_cut,
        config=config,
        config_digest=config_digest,
        metrics=metrics,
        decision=decision,
        details=metadata,
    )
    session.add(row)
    session.flush()
    return row


def champion(session: Session, key: ModelKey) -> ModelRow | None:
    """The model that answers for the key."""
    return session.scalars(
        sa.select(ModelRow).where(*ModelRow.of_key(key), ModelRow.state == "champion")
    ).one_or_none()


def find_by_artifact(session: Session, key: ModelKey, sha256: str) -> ModelRow | None:
    """The key's model of these bytes: a second run of a job finds the first one's."""
    return session.scalars(
        sa.select(ModelRow).where(*ModelRow.of_key(key), ModelRow.artifact_sha256 == sha256)
    ).one_or_none()


def get(session: Session, key: ModelKey, version: int | None = None) -> ModelRow | None:
    """One version of the key; without one the champion, or the newest where there is no champion."""
    if version is not None:
        query = sa.select(ModelRow).where(*ModelRow.of_key(key), ModelRow.version == version)
        return session.scalars(query).one_or_none()
    return champion(session, key) or next(iter(models(session, key=key, limit=1)), None)


def models(
    session: Session,
    *,
    key: ModelKey | None = None,
    symbol: str | None = None,
    state: str | None = None,
    limit: int = 100,
) -> Sequence[ModelRow]:
    """The newest models, newest first."""
    query = sa.select(ModelRow).limit(limit)
    if key is not None:
        query = query.where(*ModelRow.of_key(key)).order_by(ModelRow.version.desc())
    else:
        query = query.order_by(ModelRow.created_at.desc())
    if symbol is not None:
        query = query.where(ModelRow.symbol == symbol)
    if state is not None:
        query = query.where(ModelRow.state == state)
    return session.scalars(query).all()


def by_id(session: Session, ids: Iterable[int]) -> dict[int, ModelRow]:
    """Models by their ids; an id that names none is left out."""
    rows = session.scalars(sa.select(ModelRow).where(ModelRow.id.in_(list(ids))))
    return {row.id: row for row in rows}


def promote(
    session: Session,
    model_id: int,
    *,
    now: datetime,
    actor: str,
    why: str,
    details: Json,
    hmac_key: bytes | None = None,
) -> ModelRow:
    """Make a model its key's champion and archive the one before, with an audit row, in one transaction.

    Two promotions of a key wait for each other. Promoting the champion changes nothing.

    Args:
        session: the caller's; nothing holds before its commit.
        model_id: of any state; an archived model's promotion is a rollback.
        now: the clock's.
        actor: who decided.
        why: in words.
        details: numbers behind it; model, version and artifact are added.
        hmac_key: signs the audit row.

    Raises:
        LookupError: no such model.
    """
    found = session.get(ModelRow, model_id)
    if found is None:
        raise LookupError(f"no model {model_id}")
    _lock(session, found.key)
    row = session.get_one(ModelRow, model_id, populate_existing=True)
    before = champion(session, row.key)
    if before is not None:
        if before.id == row.id:
            return row
        before.state, before.archived_at = "archived", now
        session.flush()  # first: the unique index allows no two champions, not even for a moment
    row.state, row.promoted_at, row.archived_at = "champion", now, None
    row.replaces_id = None if before is None else before.id
    session.flush()
    audit.append(
        session,
        action="promote",
        actor=actor,
        subject=str(row.key),
        why=why,
        details={
            **details,
            "model_id": row.id,
            "version": row.version,
            "artifact_sha256": row.artifact_sha256,
            "booster_sha256": row.booster_sha256,
            "replaces_version": None if before is None else before.version,
        },
        now=now,
        hmac_key=hmac_key,
    )
    return row


def _lock(session: Session, key: ModelKey) -> None:
    lock(session, "models", str(key))
