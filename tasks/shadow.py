"""tasks.score_shadows: what models in shadow would have said to the signals that champions answered."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np
import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import predictions, registry, shadows
from ml.artifact import Predictor
from ml.confidence import confidence_from
from ml.dataset import ROW_FEATURE_NAMES
from ml.errors import ArtifactCorrupt
from ml.inference import Judgement, judge
from ml.keys import interval_duration
from ml.patterns import pattern_mask
from tasks.base import Resources, Task
from tasks.one_key import on_its_own
from tasks.stored_model import load

__all__ = ["Scored", "score_due", "score_shadows"]

BATCH: Final = 1000
SECONDS: Final = 60.0
"""After so long the rest is left to the next run."""
COPIED: Final = (
    "signal_id", "symbol", "interval", "regime", "direction", "patterns", "entry_price", "atr",
)  # fmt: skip
"""Columns that a shadow's row has from the champion's as they are."""
ROW_BYTES: Final = 4 * len(ROW_FEATURE_NAMES)

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Scored:
    """What one run did."""

    rows: int = 0
    """New."""
    skipped: int = 0
    """Answers to features of another version, which no model of this one can judge."""
    unreadable: int = 0
    """Models that could not be loaded; the log says why."""


@shared_task(base=Task, bind=True, name="tasks.score_shadows", ignore_result=True)
def score_shadows(self: Task) -> dict[str, int]:
    """Let every model in shadow judge the signals that the champion of its key was asked about.

    Returns:
        As ``score_due``.
    """
    return asdict(score_due(self.resources))


def score_due(resources: Resources) -> Scored:
    """Score what is not scored yet, a batch a transaction, until nothing is left or ``SECONDS`` have passed.

    A second run finds nothing to do; of two at once each row is the first one's.
    """
    settings, now = resources.settings, resources.clock.now()
    until = time.monotonic() + SECONDS
    with resources.transaction() as session:
        pairs = registry.in_shadow(session, now=now, shadow_days=settings.shadow_days)
    done = Scored()
    for row, champion in pairs:
        with on_its_own("shadow_not_scored", row.key, model_version=row.version):
            shadow = _Shadow(row, champion, timedelta(days=settings.shadow_days))
            _score(resources, shadow, settings.max_out_of_distribution, done, until)
    if done.rows or done.unreadable:
        log.info("shadows_scored", **asdict(done))
    return done


class _Shadow:
    """A model that answers in shadow, beside a champion or where the key has none."""

    def __init__(self, row: registry.ModelRow, champion: registry.ModelRow | None, span: timedelta) -> None:
        self.row = row
        self.has_champion = champion is not None
        # As a candidate, or from when another took its place.
        after = None if row.state == "shadow" else champion
        since = row.shadow_at if after is None else after.promoted_at
        assert since is not None
        self.since = since
        self.until = None if after is None else min(since + span, after.archived_at or since + span)


def _score(
    resources: Resources, shadow: _Shadow, most_out_of_distribution: float, done: Scored, until: float
) -> None:
    """Everything that one model is still to be asked; nothing is read of a model that is not."""
    predictor: Predictor | None = None
    after: tuple[datetime, UUID] | None = None
    while time.monotonic() < until:
        with resources.transaction() as session:
            batch = shadows.to_score(
                session,
                shadow.row.key,
                shadow.row.id,
                since=shadow.since,
                has_champion=shadow.has_champion,
                limit=BATCH,
                until=shadow.until,
                after=after,
            )
            fitting = [one for one in batch if len(one.features or b"") == ROW_BYTES]
            if fitting and predictor is None:
                predictor = _load(session, shadow.row)
                if predictor is None:
                    done.unreadable += 1
                    return
            if predictor is not None:
                records = _records(shadow.row, predictor, fitting, most_out_of_distribution)
                done.rows += predictions.write(session, records)
        done.skipped += len(batch) - len(fitting)
        if len(batch) < BATCH:
            return
        after = (batch[-1].signal_time, batch[-1].id)


def _load(session: Session, row: registry.ModelRow) -> Predictor | None:
    """None for one that cannot be heard: the others are, and a person finds it in the log."""
    try:
        predictor = load(session, row)
    except ArtifactCorrupt as error:
        log.exception("artifact_corrupt", model_key=str(row.key), version=row.version, error=str(error))
        return None
    if predictor.model.feature_names != ROW_FEATURE_NAMES:
        log.error("model_mismatch", model_key=str(row.key), version=row.version)
        return None
    return predictor


def _records(
    row: registry.ModelRow, predictor: Predictor, batch: Sequence[predictions.Prediction], most: float
) -> list[dict[str, Any]]:
    """Rows of ``ml_performance_tracking``, one for each champion's row."""
    if not batch:
        return []
    features = np.stack([np.frombuffer(one.features or b"", "<f4") for one in batch]).astype(np.float32)
    judged = judge(predictor, features)
    return [_record(row, predictor, one, judged, index, most) for index, one in enumerate(batch)]


def _record(
    row: registry.ModelRow,
    predictor: Predictor,
    of: predictions.Prediction,
    judged: Judgement,
    index: int,
    most: float,
) -> dict[str, Any]:
    """What the model would have said, had it been the champion: as ``ml.inference.answer`` has it."""
    model = predictor.model
    reason = _abstain_reason(predictor, of, float(judged.out_of_distribution[index]), most)
    decision = "abstain" if reason else "accept" if judged.accept[index] else "reject"
    own = of.pattern_confidence
    if own is None:
        own = confidence_from(model.pattern_hit_rates, pattern_mask(of.patterns), of.direction)
    horizon = model.labels.horizon_bars * interval_duration(of.interval)
    return {name: getattr(of, name) for name in COPIED} | {
        "id": str(shadows.shadow_id(of.id, row.id)),
        "signal_time": of.signal_time.isoformat(),
        "as_of": of.as_of.isoformat(),
        "model_id": row.id,
        "served_regime": model.key.regime,
        "role": "shadow",
        "pattern_confidence": own,
        "confidence": None if reason else float(judged.confidence[index]),
        "decision": decision,
        "abstain_reason": reason,
        "expected_net_return_atr": None if reason else float(judged.expected_net_return_atr[index]),
        "out_of_distribution": float(judged.out_of_distribution[index]),
        "model_age_seconds": (of.as_of - model.as_of).total_seconds(),
        "latency_ms": None,
        "features": base64.b64encode(of.features or b"").decode("ascii"),
        "horizon_end": (of.signal_time + horizon).isoformat(),
        "metadata": {shadows.OF: str(of.id), "threshold": model.threshold.value},
    }


def _abstain_reason(
    predictor: Predictor, of: predictions.Prediction, out_of_distribution: float, most: float
) -> str | None:
    """As for a champion, but for its age: whether the older model was the better one is what is asked."""
    if of.regime in predictor.model.unfit_regimes:
        return "fallback_unfit"
    return "out_of_distribution" if out_of_distribution > most else None
