"""Whether the final word on a promotion is written, and how long it is waited for what it rests on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from db.models import EvaluationRow, ModelRow

__all__ = ["GRACE", "PROMOTED_AT", "is_waited_for", "is_written"]

GRACE: Final = timedelta(days=3)
"""After the end of a promotion's weeks: so long answers may still be scored, and outcomes found, before it is
judged by what is known."""
PROMOTED_AT: Final = "promoted_at"
"""In the metrics of a final row, with the numbers: a model may take another's place more than once."""


def is_written(model: type[ModelRow], replaced: type[ModelRow]) -> sa.ColumnElement[bool]:
    """Whether the evaluation history has the final word on ``model``'s last taking of the other's place."""
    return sa.exists().where(
        EvaluationRow.model_id == replaced.id,
        EvaluationRow.champion_id == model.id,
        EvaluationRow.kind == "shadow",
        EvaluationRow.as_of >= model.promoted_at,
        EvaluationRow.metrics[PROMOTED_AT].astext.cast(sa.TIMESTAMP(timezone=True)) == model.promoted_at,
    )


def is_waited_for(
    model: type[ModelRow], replaced: type[ModelRow], over_at: sa.ColumnElement[datetime], now: datetime
) -> sa.ColumnElement[bool]:
    """Whether the weeks ended at ``over_at``, the final word is not written, and there is time for more."""
    return (over_at <= now) & (over_at > now - GRACE) & ~is_written(model, replaced)
