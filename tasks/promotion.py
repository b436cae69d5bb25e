"""A judged challenger's fate, in one transaction: stored, and promoted or rejected with its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db import artifacts, audit, evaluations, references, registry
from ml.artifact import sha256_hex, to_bytes
from ml.errors import RetryLater
from ml.evaluation import Evaluation
from ml.promotion import Decision
from ml.training import Challenger
from tasks.run import Run

__all__ = ["Judged", "save_challenger"]

ACTOR = "tasks.train"


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
    """Store the challenger with its evaluation and reference; promote it if the gates let it.

    A challenger whose bytes the key has already changes nothing: same candles, same options, same model.

    Returns:
        The job's outcome.

    Raises:
        RetryLater: the key's champion changed since the challenger was held against it.
    """
    body = to_bytes(judged.challenger.model)
    sha256 = sha256_hex(body)
    existing = registry.find_by_artifact(session, run.key, sha256)
    if existing is not None:
        return _outcome(existing, judged, result="unchanged")
    artifacts.put(session, sha256=sha256, body=body, kind="model", address=None, metadata={})
    row = _register(session, run, judged, sha256)  # holds the key's lock from here on
    champion = registry.champion(session, run.key)
    if (champion and champion.id) != (judged.champion and judged.champion.id):
        raise RetryLater(
            f"{run.key}: the champion changed while a challenger was judged against the one before"
        )
    _record_evaluations(session, run, judged, row)
    references.save(session, row.id, judged.challenger.reference)
    _decide(session, run, judged, row)
    return _outcome(row, judged, result="promoted" if judged.decision.promote else "rejected")


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
        state="candidate" if judged.decision.promote else "rejected",
        metadata={
            "sources": judged.sources,
            "pool": challenger.model.pool,
            "rows": dict(challenger.model.rows),
            "drift_score": challenger.drift_score,
            "has_edge": challenger.model.return_bins.has_edge,
            "left_out": judged.left_out,
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


def _decide(
    session: Session,
    run: Run,
    judged: Judged,
    row: registry.ModelRow,
) -> None:
    """The audit row of either fate; `registry.promote` writes its own."""
    now = run.resources.clock.now()
    secret = run.resources.settings.audit_hmac_key
    hmac_key = None if secret is None else secret.get_secret_value().encode()
    details: dict[str, object] = {
        "job_id": run.job.id,
        "reason": run.job.reason,
        "requested_by": run.job.requested_by,
    }
    if judged.decision.promote:
        why = "every gate passed"
        registry.promote(session, row.id, now=now, actor=ACTOR, why=why, details=details, hmac_key=hmac_key)
        return
    details |= {"model_id": row.id, "version": row.version, "artifact_sha256": row.artifact_sha256}
    audit.append(
        session,
        action="reject",
        actor=ACTOR,
        subject=str(run.key),
        why="; ".join(judged.decision.reasons),
        details=details,
        now=now,
        hmac_key=hmac_key,
    )


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
