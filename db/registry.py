"""The models: every one ever trained, which one answers for a key, and how it came to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from db import audit, references
from db.base import Json
from db.final_words import is_waited_for
from db.locks import lock
from db.models import EvaluationRow, ModelRow
from ml.errors import InputRejected, KeyRejected
from ml.keys import ModelKey

__all__ = [
    "ModelRow",
    "add",
    "by_id",
    "champion",
    "champions",
    "find_by_artifact",
    "get",
    "in_shadow",
    "lock_key",
    "models",
    "move",
    "promote",
    "rollback",
    "rollback_target",
    "trials",
]

ROLLED_BACK = "rolled_back_at"
"""In a model's details, from a rollback that took its place until it is promoted again."""


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
    lock_key(session, key)
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


def champions(session: Session) -> list[ModelRow]:
    """The model that answers for each key that has one, by key."""
    query = sa.select(ModelRow).where(ModelRow.state == "champion")
    return list(session.scalars(query.order_by(ModelRow.symbol, ModelRow.interval, ModelRow.regime)))


def in_shadow(
    session: Session, *, now: datetime, shadow_days: float
) -> list[tuple[ModelRow, ModelRow | None]]:
    """The models that answer in shadow, each with its key's champion (None where there is none).

    These are the models of state ``shadow``, and what each champion took the place of, while ``now`` is
    less than ``shadow_days`` after that promotion. Once its days or the reign are over, a pair stays for
    what is still to be scored until it is settled: with the model that took the place, champion or not.
    """
    current = aliased(ModelRow)
    of_key = (getattr(current, part) == getattr(ModelRow, part) for part in ("symbol", "interval", "regime"))
    candidates = (
        sa.select(ModelRow, current)
        .outerjoin(current, sa.and_(*of_key, current.state == "champion"))
        .where(ModelRow.state == "shadow")
    )
    over_at = sa.func.least(current.promoted_at + timedelta(days=shadow_days), current.archived_at)
    runs = (current.state == "champion") & (ModelRow.state == "archived") & (over_at > now)
    waits = is_waited_for(current, ModelRow, over_at, now) & ~ModelRow.details.has_key(ROLLED_BACK)
    pairs = sa.select(ModelRow, current).join(current, current.replaces_id == ModelRow.id)
    replaced = pairs.where(runs | waits)
    found = [(row, other) for query in (candidates, replaced) for row, other in session.execute(query)]
    return sorted(found, key=lambda pair: pair[0].id)


def trials(session: Session, key: ModelKey, *, since: datetime | None) -> list[datetime]:
    """``as_of`` (data cut) of every model of the key that was judged after ``since``, ascending.

    When it was judged is the time of its evaluation, which follows the clock; a row's ``created_at`` is the
    server's and stands in only where nothing was recorded.
    """
    judged = (
        sa.select(sa.func.min(EvaluationRow.as_of))
        .where(EvaluationRow.model_id == ModelRow.id, EvaluationRow.kind == "challenger")
        .scalar_subquery()
    )
    query = sa.select(ModelRow.as_of).where(*ModelRow.of_key(key)).order_by(ModelRow.as_of)
    if since is not None:
        query = query.where(sa.func.coalesce(judged, ModelRow.created_at) > since)
    return list(session.scalars(query))


def lock_key(session: Session, key: ModelKey) -> None:
    """Hold the key's models as they are to the end of the transaction."""
    lock(session, "models", str(key))


def promote(
    session: Session,
    model_id: int,
    *,
    now: datetime,
    actor: str,
    why: str,
    details: Json,
    hmac_key: bytes | None = None,
    action: Literal["promote", "force", "rollback"] = "promote",
) -> ModelRow:
    """Make a model its key's champion and archive the one before, with an audit row, in one transaction.

    Two promotions of a key wait for each other. Promoting the champion changes nothing.

    Args:
        session: the caller's; nothing holds before its commit.
        model_id: of any state; whether it may is the caller's to decide.
        now: the clock's.
        actor: who decided.
        why: in words.
        details: numbers behind it; model, version, artifact and what it replaces are added.
        hmac_key: signs the audit row.
        action: of the audit row.

    Raises:
        LookupError: no such model.
        InputRejected: its drift could never be seen: it has no reference, or no calibration. By ``force``
            or a ``rollback`` it needs no calibration; where it has none the audit row says so.
    """
    row = _locked(session, model_id)
    before = _champion_now(session, row.key)
    if before is not None and before.id == row.id:
        return row
    calibrated = _require_reference(session, row, action)
    came_from = row.state
    if before is not None:
        before.state, before.archived_at = "archived", now
        if action == "rollback":
            before.details = before.details | {ROLLED_BACK: now.astimezone(UTC).isoformat()}
        session.flush()  # first: the unique index allows no two champions, not even for a moment
    row.state, row.promoted_at, row.archived_at = "champion", now, None
    row.replaces_id = None if before is None else before.id
    row.details = {name: value for name, value in row.details.items() if name != ROLLED_BACK}
    session.flush()
    replaces = {
        "state_before": came_from,
        "replaces_version": None if before is None else before.version,
        "replaces_id": None if before is None else before.id,
    }
    unchecked = {} if calibrated else {"drift_unchecked": True}
    _record(session, row, action, now, actor, why, details | replaces | unchecked, hmac_key)
    return row


def rollback(
    session: Session,
    key: ModelKey,
    *,
    to_version: int | None = None,
    now: datetime,
    actor: str,
    why: str,
    details: Json,
    hmac_key: bytes | None = None,
) -> ModelRow:
    """Give a key back a champion that it had, with an audit row, in one transaction.

    Args:
        session: the caller's; nothing holds before its commit.
        key: whose champion.
        to_version: any archived version; without it as ``rollback_target`` chooses.
        now, actor, why, details, hmac_key: as of ``promote``.

    Raises:
        KeyRejected, InputRejected: as ``rollback_target``.
    """
    target = rollback_target(session, key, to_version)
    return promote(
        session, target.id, action="rollback", now=now, actor=actor, why=why, details=details,
        hmac_key=hmac_key,
    )  # fmt: skip


def rollback_target(session: Session, key: ModelKey, to_version: int | None = None) -> ModelRow:
    """The model that a rollback makes champion. The key stays as it is to the end of the transaction.

    Without ``to_version`` it is the one that the champion took the place of, or where that is not archived
    the one archived last; but none that was itself rolled back from: a second rollback goes further back.

    Raises:
        KeyRejected: the key has no champion.
        InputRejected: there is nothing to go back to, or ``to_version`` cannot be gone back to.
    """
    lock_key(session, key)
    current = _champion_now(session, key)
    if current is None:
        raise KeyRejected("key", str(key), "a key with a champion", "`alphaplus promote` makes one")
    if to_version is not None:
        return _version_to_go_back_to(session, key, to_version)
    archived = session.scalars(
        sa.select(ModelRow)
        .where(*ModelRow.of_key(key), ModelRow.state == "archived")
        .order_by(ModelRow.archived_at.desc(), ModelRow.version.desc())
        .execution_options(populate_existing=True)
    ).all()
    open_to = [row for row in archived if ROLLED_BACK not in row.details]
    if not open_to:
        left = ", ".join(map(str, sorted(row.version for row in archived)))
        hint = f"rolled back from before: {left}; name one to go there all the same" if left else ""
        limit = f"a key that had a champion before version {current.version}"
        raise InputRejected("key", str(key), limit, hint)
    return next((row for row in open_to if row.id == current.replaces_id), open_to[0])


def move(
    session: Session,
    model_id: int,
    state: Literal["shadow", "rejected"],
    *,
    now: datetime,
    actor: str,
    why: str,
    details: Json,
    hmac_key: bytes | None = None,
) -> ModelRow:
    """Let a candidate answer in shadow, or reject a candidate or a shadow, with an audit row.

    A second run finds it there and changes nothing.

    Raises:
        LookupError: no such model.
        InputRejected: a model of its state cannot go there.
    """
    row = _locked(session, model_id)
    if row.state == state:
        return row
    allowed = {"shadow": ("candidate",), "rejected": ("candidate", "shadow")}[state]
    if row.state not in allowed:
        raise InputRejected("state", row.state, " or ".join(allowed), f"{row.key}, version {row.version}")
    came_from, row.state = row.state, state
    if state == "shadow":
        row.shadow_at = now
    session.flush()
    action = "reject" if state == "rejected" else "shadow"
    _record(session, row, action, now, actor, why, details | {"state_before": came_from}, hmac_key)
    return row


def _locked(session: Session, model_id: int) -> ModelRow:
    """The model as it is once nobody else can change its key's. Raises LookupError."""
    found = session.get(ModelRow, model_id)
    if found is None:
        raise LookupError(f"no model {model_id}")
    lock_key(session, found.key)
    return session.get_one(ModelRow, model_id, populate_existing=True)


def _champion_now(session: Session, key: ModelKey) -> ModelRow | None:
    """As ``champion``, also where the session has read that row before the lock was its own."""
    query = sa.select(ModelRow).where(*ModelRow.of_key(key), ModelRow.state == "champion")
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def _require_reference(session: Session, row: ModelRow, action: str) -> bool:
    """Whether its drift can be checked. Raises InputRejected."""
    hint, calibrated = "train the key again", bool(references.calibrated(session, [row.id]))
    if not references.stored(session, row.id):
        raise InputRejected("version", row.version, "a version whose drift reference is stored", hint)
    if action == "promote" and not calibrated:
        raise InputRejected("version", row.version, "a version whose drift is calibrated", hint)
    return calibrated


def _version_to_go_back_to(session: Session, key: ModelKey, version: int) -> ModelRow:
    """Raises InputRejected."""
    row = get(session, key, version)
    if row is None:
        known = session.scalars(
            sa.select(ModelRow.version)
            .where(*ModelRow.of_key(key), ModelRow.state == "archived")
            .order_by(ModelRow.version)
        ).all()
        limit = "an archived version" + (f": {', '.join(map(str, known))}" if known else "; there is none")
        raise InputRejected("version", version, limit, f"{key} has no version {version}")
    if row.state == "champion":
        raise InputRejected("version", version, "a version before the champion", "it is the champion")
    if row.state != "archived":
        limit = "a version that was champion (state archived)"
        hint = f"its state is {row.state}; `alphaplus promote --force` takes any"
        raise InputRejected("version", version, limit, hint)
    return row


def _record(
    session: Session, row: ModelRow, action: str, now: datetime, actor: str, why: str, details: Json,
    hmac_key: bytes | None,
) -> None:  # fmt: skip
    """The audit row of a change; it names the bytes, without which no worker would serve them."""
    named = {
        "model_id": row.id,
        "version": row.version,
        "artifact_sha256": row.artifact_sha256,
        "booster_sha256": row.booster_sha256,
    }
    audit.append(
        session, action=action, actor=actor, subject=str(row.key), why=why, details=details | named,
        now=now, hmac_key=hmac_key,
    )  # fmt: skip
