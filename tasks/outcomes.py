"""tasks.resolve_outcomes: what became of the answers given, and how right they were."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import candles, evaluations, outcomes, predictions, registry
from db.locks import lock
from ml.config import LabelConfig, TrainingConfig
from ml.dataset import ROW_FEATURE_NAMES
from ml.evaluation import BLOCK_HORIZONS
from ml.keys import ModelKey, interval_duration
from ml.live_accuracy import LiveAccuracy
from ml.live_accuracy import live_accuracy as judge
from ml.outcomes import GIVEN_UP_AFTER, OpenSignal, Resolution, resolve
from tasks.base import Resources, Task

__all__ = ["live_accuracy", "resolve_due", "resolve_outcomes"]

BATCH: Final = 1000
SECONDS: Final = 20.0
"""After so long the rest is left to the next run."""
SAMPLES: Final = 1000
NATR: Final = ROW_FEATURE_NAMES.index("natr_14")

log = structlog.get_logger(__name__)


class _Resolved(NamedTuple):
    """One answer that got its outcome."""

    key: ModelKey
    was_given: bool
    """By a champion: a shadow's changes no live accuracy."""
    has_label: bool


@shared_task(base=Task, bind=True, name="tasks.resolve_outcomes", ignore_result=True)
def resolve_outcomes(self: Task) -> dict[str, Any]:
    """Write the outcomes that are known by now, and keep the live accuracy of the keys that got some.

    Returns:
        As ``resolve_due``.
    """
    return resolve_due(self.resources)


def resolve_due(resources: Resources) -> dict[str, Any]:
    """Resolve what is due, a batch a transaction, until nothing more is or ``SECONDS`` have passed.

    A second run finds nothing due. The accuracy comes last, in a transaction a key: its bootstrap takes a
    while, and a run killed before it leaves it to the key's next outcome, for it is made of all of them.

    Returns:
        How many got a label and how many cannot have one, shadows' answers included, and the keys of those
        that were given.
    """
    settings, now = resources.settings, resources.clock.now()
    config = TrainingConfig.from_mapping(settings.training)
    until = time.monotonic() + SECONDS
    resolved: list[_Resolved] = []
    after: tuple[datetime, UUID] | None = None
    more = True
    while more and time.monotonic() < until:
        with resources.transaction() as session:
            found, after = _resolve_batch(session, now=now, labels=config.labels, after=after)
        resolved += found
        more = after is not None
    keys = sorted({one.key for one in resolved if one.was_given})
    since = now - timedelta(days=settings.live_window_days)
    for key in keys:
        with resources.transaction() as session:
            _record_live(session, key, since=since, now=now, samples=config.bootstrap_samples)
    labelled = sum(one.has_label for one in resolved)
    done = {"labelled": labelled, "unlabelled": len(resolved) - labelled, "keys": [str(key) for key in keys]}
    if resolved:
        log.info("outcomes_resolved", **done)
    return done


def _resolve_batch(
    session: Session, *, now: datetime, labels: LabelConfig, after: tuple[datetime, UUID] | None = None
) -> tuple[list[_Resolved], tuple[datetime, UUID] | None]:
    """Write the outcomes of at most ``BATCH`` due predictions; the others stay open.

    Two who do this at once take turns, and the second finds what the first left.

    Args:
        session: the caller's.
        now: the clock's.
        labels: for answers that no model gave; a model's are those it was trained with.
        after: where the batch before ended.

    Returns:
        Each that was resolved; and where this batch ended, or None where nothing more is due.
    """
    lock(session, "outcomes")
    batch = outcomes.due(session, now, BATCH, after=after)
    configs = _label_configs(session, batch)
    resolved: list[_Resolved] = []
    written: list[predictions.Outcome] = []
    for row, found in _resolutions(session, batch, configs, labels, now):
        if found is not None:
            written.append(_outcome(row, found, now))
            resolved.append(_Resolved(row.key, row.role == "champion", found.label is not None))
    predictions.resolve(session, written)
    last = batch[-1] if len(batch) == BATCH else None
    return resolved, None if last is None else (last.horizon_end, last.id)


def live_accuracy(
    session: Session, *, since: datetime, until: datetime, symbol: str | None = None, samples: int = SAMPLES
) -> list[tuple[ModelKey, LiveAccuracy]]:
    """How right the answers were to signals from ``since`` on whose horizon ended by ``until``, key by key.

    Args:
        session: the caller's.
        since: of the signals' times; aware.
        until: of the horizons' ends; aware.
        symbol: of its keys only.
        samples: bootstrap resamples.

    Returns:
        In the order of the keys; those without a resolved signal are left out.
    """
    judged = []
    for key in outcomes.keys(session, symbol):
        found = outcomes.read(session, key, since=since, until=until)
        if found is not None:
            judged.append((key, _judge(found, samples)))
    return judged


def _judge(found: outcomes.KeyOutcomes, samples: int) -> LiveAccuracy:
    return judge(found.signals, block=BLOCK_HORIZONS * found.horizon, samples=samples)


def _record_live(session: Session, key: ModelKey, *, since: datetime, now: datetime, samples: int) -> None:
    found = outcomes.read(session, key, since=since, until=now)
    if found is None or found.newest_model_id is None:
        return
    accuracy = _judge(found, samples)
    if accuracy.answered:
        evaluations.record_live(
            session, key=key, model_id=found.newest_model_id, accuracy=accuracy, as_of=now
        )


def _label_configs(
    session: Session, batch: Iterable[predictions.Prediction]
) -> dict[int | None, LabelConfig]:
    models = registry.by_id(session, {row.model_id for row in batch if row.model_id is not None})
    return {
        model_id: LabelConfig.model_validate(model.config.get("labels", {}))
        for model_id, model in models.items()
    }


def _resolutions(
    session: Session,
    batch: Iterable[predictions.Prediction],
    configs: Mapping[int | None, LabelConfig],
    labels: LabelConfig,
    now: datetime,
) -> Iterator[tuple[predictions.Prediction, Resolution | None]]:
    """Each prediction with what is known of it, series by series, so that each is read once."""
    stored = {(series.symbol, series.interval) for series in candles.series(session)}
    by_series = sorted(batch, key=lambda row: (row.symbol, row.interval))
    for (symbol, interval), group in groupby(by_series, key=lambda row: (row.symbol, row.interval)):
        rows = list(group)
        step = interval_duration(interval)
        settings = [configs.get(row.model_id, labels) for row in rows]
        longest = max(config.horizon_bars for config in settings)
        times = [row.signal_time for row in rows]
        series = candles.read(
            session,
            symbol,
            interval,
            known_at=now,
            start=min(times) - step,
            end=max(times) + longest * step + GIVEN_UP_AFTER,
        )
        for row, config in zip(rows, settings, strict=True):
            is_stored = (symbol, interval) in stored
            yield row, resolve(series, _open_signal(row), config, now=now, stored=is_stored)


def _open_signal(row: predictions.Prediction) -> OpenSignal:
    return OpenSignal(
        signal_time=row.signal_time,
        direction=row.direction,
        entry_price=row.entry_price,
        atr=row.atr,
        natr=_natr(row.features),
    )


def _natr(features: bytes | None) -> float | None:
    """ATR / close of the recorded features; None where there are none, or those of another version."""
    if features is None or len(features) != 4 * len(ROW_FEATURE_NAMES):
        return None
    return float(np.frombuffer(features, "<f4")[NATR])


def _outcome(row: predictions.Prediction, found: Resolution, now: datetime) -> predictions.Outcome:
    notes = {
        "unresolved": found.unresolved,
        "stored_close": found.stored_close,
        "derived_atr": found.derived_atr,
    }
    return predictions.Outcome(
        id=row.id,
        signal_time=row.signal_time,
        label=found.label,
        label_end=found.label_end,
        net_return_atr=found.net_return_atr,
        resolved_at=now,
        metadata={name: note for name, note in notes.items() if note is not None},
    )
