"""Judgements of models, and the decisions taken on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.base import Json
from db.models import EvaluationRow
from ml.evaluation import Evaluation
from ml.keys import ModelKey
from ml.live_accuracy import LiveAccuracy

__all__ = ["EvaluationRow", "recent", "record", "record_live"]


def record(
    session: Session,
    *,
    key: ModelKey,
    model_id: int,
    kind: Literal["challenger", "champion", "shadow", "live"],
    evaluation: Evaluation,
    as_of: datetime,
    job_id: str | None,
    champion_id: int | None = None,
    promote: bool | None = None,
    decision: Json | None = None,
) -> bool:
    """Keep one judgement; False if this job has recorded it before.

    Args:
        session: the caller's.
        key: of the model.
        model_id: who was judged.
        kind: ``challenger`` and ``champion`` on a training's test rows, ``shadow`` and ``live`` on outcomes.
        evaluation: the numbers.
        as_of: the clock's now, which the row is found under.
        job_id: the training it was part of.
        champion_id: whom a challenger was held against.
        promote: what was decided; None where nothing was.
        decision: gates and reasons.
    """
    added = session.execute(
        insert(EvaluationRow)
        .values(
            symbol=key.symbol,
            interval=key.interval,
            regime=key.regime,
            model_id=model_id,
            kind=kind,
            as_of=as_of,
            job_id=job_id,
            champion_id=champion_id,
            rows=evaluation.rows,
            base_rate=evaluation.base_rate,
            f1=evaluation.f1.value,
            precision=evaluation.precision.value,
            recall=evaluation.recall.value,
            auc=evaluation.auc.value,
            brier=evaluation.brier.value,
            brier_skill=evaluation.brier_skill.value,
            net_return_atr=evaluation.net_return_accepted_atr.value,
            metrics=evaluation.to_json(),
            promote=promote,
            decision=decision,
        )
        .on_conflict_do_nothing()
        .returning(EvaluationRow.id)
    )
    return added.scalar_one_or_none() is not None


def record_live(
    session: Session, *, key: ModelKey, model_id: int, accuracy: LiveAccuracy, as_of: datetime
) -> None:
    """Keep what live answers came to, as one more row of kind ``live``.

    ``brier_skill`` stays empty: a training's is over a constant forecast, a live one over the pattern's own
    confidence, and one column of both would compare what cannot be. It is in ``metrics``.

    Args:
        session: the caller's.
        key: symbol, interval, and the regime that the market was in.
        model_id: the newest that answered; a fallback's is of another key.
        accuracy: the numbers, with ``answered`` over 0.
        as_of: the clock's now.
    """
    session.add(
        EvaluationRow(
            symbol=key.symbol,
            interval=key.interval,
            regime=key.regime,
            model_id=model_id,
            kind="live",
            as_of=as_of,
            rows=accuracy.answered,
            base_rate=accuracy.base_rate,
            precision=accuracy.precision.value,
            recall=accuracy.hits_kept.value,
            brier=accuracy.brier.value,
            net_return_atr=accuracy.net_return_accepted_atr.value,
            metrics=accuracy.to_json(),
        )
    )
    session.flush()


def recent(session: Session, key: ModelKey, limit: int) -> Sequence[EvaluationRow]:
    """The key's newest ``limit`` judgements, newest first."""
    query = sa.select(EvaluationRow).where(*EvaluationRow.of_key(key))
    return session.scalars(query.order_by(EvaluationRow.as_of.desc()).limit(limit)).all()
