"""A judged challenger's fate, in one transaction: stored, and promoted, put in shadow or rejected.

    candidate -> (shadow ->) champion -> archived, or rejected

The candidate of this file passed its gates or did not. What becomes of one in shadow is decided by
``tasks.review``; what becomes of a champion by the next one, by a rollback or by people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypedDict

from sqlalchemy.orm import Session

from db import artifacts, evaluations, keys, references, registry
from ml.artifact import attach, read_model, sha256_hex, to_bytes
from ml.config import ShadowConfig
from ml.errors import ArtifactCorrupt, RetryLater
from ml.evaluation import Evaluation
from ml.probes import answers_alike
from ml.promotion import Decision
from ml.training import Challenger
from tasks.candidates import HELD_AGAINST
from tasks.run import Run

__all__ = ["Judged", "save_challenger"]

ACTOR = "tasks.train"
DECIDED_AFTER: Final = timedelta(days=1)
"""So long ``tasks.review_champions`` may take to decide on a shadow phase that is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A challenger, the champion it was held against, and what the gates said."""

    challenger: Challenger
    champion: registry.ModelRow | None
    champion_evaluation: Evaluation | None
    decision: Decision
    sources: dict[str, str]
    """Where the candles of each pooled symbol came from."""
    fit_reused: bool
    left_out: dict[str, str]
    """Symbols of the pool whose candles carry no model, with the reason; known to the job that fits."""


def save_challenger(
    session: Session,
    run: Run,
    judged: Judged,
) -> dict[str, Any]:
    """Store the challenger with its evaluation and reference; promote it, or let it answer in shadow, if the
    gates let it, the key is not frozen and no other answers in shadow.

    A challenger whose bytes the key has already is the same model, of the same candles and options: it gets
    what drift checks need where an earlier version stored none, and nothing else changes.

    Returns:
        The job's outcome.

    Raises:
        RetryLater: the key's champion changed since the challenger was held against it.
        ArtifactCorrupt: what the database keeps of it is damaged, or answers otherwise than was judged.
    """
    body = to_bytes(judged.challenger.model)
    sha256 = sha256_hex(body)
    existing = registry.find_by_artifact(session, run.key, sha256)
    if existing is not None:
        _save_drift(session, existing, judged)
        return _outcome(existing, judged, result="unchanged")
    artifacts.put(session, sha256=sha256, body=body, kind="model", address=None, metadata={})
    _require_stored(session, run, judged, sha256)
    registry.lock_key(session, run.key)  # no promotion, rollback or freeze from here on
    champion = registry.champion(session, run.key)
    if (champion and champion.id) != (judged.champion and judged.champion.id):
        raise RetryLater(
            f"{run.key}: the champion changed while a challenger was judged against the one before"
        )
    decision = _unless_in_shadow(session, run, _unless_frozen(session, run, judged.decision))
    judged = replace(judged, decision=decision)
    row = _register(session, run, judged, sha256)
    _record_evaluations(session, run, judged, row)
    _save_drift(session, row, judged)
    return _outcome(row, judged, result=_settle(session, run, judged, row))


def _require_stored(session: Session, run: Run, judged: Judged, sha256: str) -> None:
    """Read the challenger back from the database, as a worker would, and let it answer; the gate knows only
    bytes in memory. One that the gates let through answers as it was judged. Raises ArtifactCorrupt."""
    body = artifacts.get(session, sha256)
    model = read_model(body, sha256)
    stored = attach(model, artifacts.get(session, model.booster_sha256), json_bytes=len(body))
    challenger = judged.challenger
    probe = answers_alike(challenger.predictor, stored, challenger.test, seed=run.config.fit.seed)
    if judged.decision.promote and not probe.passed:
        raise ArtifactCorrupt(
            f"{run.key}: the challenger in the database is not what was judged: {probe.detail}"
        )


def _save_drift(session: Session, row: registry.ModelRow, judged: Judged) -> None:
    """What is there stays as it is."""
    references.save(session, row.id, judged.challenger.drift.reference)
    references.save_calibration(session, row.id, judged.challenger.drift.calibration)


def _unless_frozen(session: Session, run: Run, decision: Decision) -> Decision:
    """A frozen key's champion is changed by people only: its challengers are judged all the same."""
    frozen = keys.frozen(session, run.key)
    if frozen is None:
        return decision
    return decision.held(
        f"{run.key} is frozen since {frozen.frozen_at:%Y-%m-%d %H:%M} UTC by {frozen.frozen_by} "
        f"({frozen.frozen_why}): only people change its champion until it is thawed"
    )


def _unless_in_shadow(session: Session, run: Run, decision: Decision) -> Decision:
    """One candidate at a time answers in shadow: were each to take the place of the one before, those of a
    schedule would, and none would ever be decided on."""
    if not (decision.promote and run.config.shadow.on):
        return decision
    now = run.resources.clock.now()
    for older in registry.models(session, key=run.key, state="shadow"):
        ends = _shadow_ends(older, most_days=run.resources.settings.shadow_days)
        if now < ends + DECIDED_AFTER:
            return decision.held(
                f"version {older.version} is in shadow until {ends:%Y-%m-%d %H:%M} UTC at the latest: "
                "one at a time"
            )
    return decision


def _shadow_ends(row: registry.ModelRow, *, most_days: float) -> datetime:
    """The latest end of a shadow phase; one that asks for signals only is not waited for without end."""
    assert row.shadow_at is not None
    days = ShadowConfig.model_validate(row.config.get("shadow", {})).days
    return row.shadow_at + timedelta(days=days or most_days)


def _register(
    session: Session,
    run: Run,
    judged: Judged,
    sha256: str,
) -> registry.ModelRow:
    challenger = judged.challenger
    return registry.add(
        session,
        key=run.key,
        artifact_sha256=sha256,
        booster_sha256=challenger.model.booster_sha256,
        job_id=run.job.id,
        as_of=run.job.as_of,
        data_cut=run.job.as_of,
        config=run.config.model_dump(mode="json"),
        config_digest=run.config.digest(),
        metrics=challenger.evaluation.to_json(),
        decision=judged.decision.to_json(),
        state="candidate",
        metadata={
            "sources": judged.sources,
            "pool": challenger.model.pool,
            "rows": dict(challenger.model.rows),
            "drift_score": challenger.drift.test_score,
            "has_edge": challenger.model.return_bins.has_edge,
            "left_out": judged.left_out,
            HELD_AGAINST: None if judged.champion is None else judged.champion.id,
        },
    )


def _record_evaluations(
    session: Session,
    run: Run,
    judged: Judged,
    row: registry.ModelRow,
) -> None:
    now = run.resources.clock.now()
    champion_id = None if judged.champion is None else judged.champion.id
    evaluations.record(
        session,
        key=run.key,
        model_id=row.id,
        kind="challenger",
        evaluation=judged.challenger.evaluation,
        as_of=now,
        job_id=run.job.id,
        champion_id=champion_id,
        promote=judged.decision.promote,
        decision=judged.decision.to_json(),
    )
    if champion_id is not None and judged.champion_evaluation is not None:
        evaluations.record(
            session,
            key=run.key,
            model_id=champion_id,
            kind="champion",
            evaluation=judged.champion_evaluation,
            as_of=now,
            job_id=run.job.id,
        )


def _settle(session: Session, run: Run, judged: Judged, row: registry.ModelRow) -> str:
    """Take the candidate where the decision says, each step with an audit row; the job's result in a word."""
    step: _Step = {
        "now": run.resources.clock.now(),
        "actor": ACTOR,
        "details": {
            "job_id": run.job.id,
            "reason": run.job.reason,
            "requested_by": run.job.requested_by,
        },
        "hmac_key": run.resources.settings.audit_key,
    }
    if not judged.decision.promote:
        registry.move(session, row.id, "rejected", why="; ".join(judged.decision.reasons), **step)
        return "rejected"
    for older in registry.models(session, key=run.key, state="shadow"):
        why = f"version {row.version} passed its gates and took its place"
        registry.move(session, older.id, "rejected", why=why, **step)
    if run.config.shadow.on:
        registry.move(session, row.id, "shadow", why=f"every gate passed; {_asked(run)}", **step)
        return "shadow"
    registry.promote(session, row.id, why="every gate passed", **step)
    return "promoted"


class _Step(TypedDict):
    """What every change of a model's state says."""

    now: datetime
    actor: str
    details: dict[str, object]
    hmac_key: bytes | None


def _asked(run: Run) -> str:
    """What ends the shadow phase, in words."""
    shadow = run.config.shadow
    signals = f"{shadow.signals} matured outcomes" if shadow.signals else ""
    days = f"{shadow.days:g} days" if shadow.days else ""
    return f"{' or '.join(filter(None, (signals, days)))} in shadow are asked for"


def _outcome(row: registry.ModelRow, judged: Judged, *, result: str) -> dict[str, Any]:
    return {
        "result": result,
        "model_id": row.id,
        "version": row.version,
        "model_state": row.state,
        "decision": judged.decision.to_json(),
        "metrics": judged.challenger.evaluation.to_json(),
        "fit_reused": judged.fit_reused,
        "has_edge": judged.challenger.model.return_bins.has_edge,
        "left_out": judged.left_out,
        "sources": judged.sources,
    }
