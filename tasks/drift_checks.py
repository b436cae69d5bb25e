"""One champion's drift check: current signals, the reference, the verdict, and the rows that keep it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from db import drift, drift_actions, references, registry, thresholds
from db.locks import lock
from ml.alarms import SEVERITIES, DriftCheck, SeverityLimits, severity_of
from ml.artifact import Predictor
from ml.candles import to_datetime
from ml.config import DriftConfig, TrainingConfig
from ml.decay import check_outcomes
from ml.drift import Reference
from ml.drift_calibration import DriftCalibration
from ml.drift_check import check_confidence, check_features
from ml.errors import StoreUnavailable
from ml.inference import Served
from ml.keys import ModelKey
from ml.outcomes import live_until
from tasks.base import Resources
from tasks.drift_actions import ACTED_ON, Alarm, act
from tasks.drift_window import SignalCache
from tasks.model_cache import ModelCache
from tasks.retraining import Retraining, action_json

__all__ = ["DriftChecks", "NextSlot"]

NextSlot = Callable[[ModelKey], datetime | None]
"""When a key's next training is scheduled, by the wall; None where it has none."""


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """The champion, and what its signals are compared with."""

    row: registry.ModelRow
    predictor: Predictor
    reference: Reference
    calibration: DriftCalibration


@dataclass(frozen=True, slots=True, eq=False)
class _Current:
    as_of: datetime
    """Close of the newest candle."""
    features: NDArray[np.float32]
    short: dict[str, Any] | None
    """Why these are not compared: ``rows``, ``limit`` and ``detail``; None where they are enough."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """What a check found."""

    model: registry.ModelRow
    as_of: datetime
    limits: SeverityLimits
    checks: tuple[DriftCheck, ...]
    """At least one."""
    short: dict[str, Any] | None

    def severities(self) -> list[str]:
        """Of each check."""
        return [severity_of(check.score, self.limits) for check in self.checks]


class DriftChecks:
    """The checks of one process, with what it keeps in memory between them.

    Args:
        resources: this process's database and settings.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        settings = resources.settings
        self._signals = SignalCache()
        self._models = ModelCache(
            resources.transaction,
            max_bytes=settings.model_cache_mib * 2**20,
            check_seconds=settings.champion_check_seconds,
        )

    def check(self, key: ModelKey, next_slot: NextSlot) -> tuple[dict[str, Any], Retraining | None]:
        """Check a key's champion, record what was found, and decide what is done about it.

        A second check by the same candles changes nothing.

        Args:
            key: of the champion.
            next_slot: when the key's next training is scheduled, by the wall; None where it has none.

        Returns:
            Plain values, as ``check_drift`` says; and the retraining to send after this, if one was begun.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        now = self._resources.clock.now()
        config = TrainingConfig.from_mapping(self._resources.settings.training).drift
        sample = self._sample(key, config, now)
        if isinstance(sample, dict):
            return sample, None
        worst = max(sample.severities(), key=SEVERITIES.index, default="none")
        slot = next_slot(key) if worst == "high" else None
        with self._resources.transaction() as session:
            return self._record(session, key, sample, slot, now)

    def _sample(self, key: ModelKey, config: DriftConfig, now: datetime) -> _Sample | dict[str, Any]:
        """The check itself; or why there is none."""
        with self._resources.transaction() as session:
            subject = self._subject(session, key)
            if isinstance(subject, dict):
                return subject
            current = self._current(session, subject, config, now)
            if isinstance(current, dict):
                return current
            limits = thresholds.thresholds(session, key, now)
            checks = _compare(session, subject, current, limits, config.false_retrainings_per_month, now)
        if current.short is not None and not checks:
            return {"state": "too_few_rows", **current.short}
        return _Sample(
            model=subject.row, as_of=current.as_of, limits=limits, checks=checks, short=current.short
        )

    def _subject(self, session: Session, key: ModelKey) -> _Subject | dict[str, Any]:
        row = registry.champion(session, key)
        if row is None:
            return {"state": "no_champion", "detail": f"{key} has no champion"}
        reference = references.load(session, row.id)
        calibration = references.load_calibration(session, row.id)
        if reference is None or reference.confidence is None or calibration is None:
            detail = f"version {row.version} was trained before drift was calibrated: train again"
            return {"state": "no_calibration", "version": row.version, "detail": detail}
        served = self._served(key, row)
        if isinstance(served, str):
            return {"state": served, "version": row.version, "detail": "the champion cannot answer"}
        return _Subject(row, served.predictor, reference, calibration)

    def _current(
        self, session: Session, subject: _Subject, config: DriftConfig, now: datetime
    ) -> _Current | dict[str, Any]:
        """The newest signals of the key that its champion was not made of."""
        key, rows = subject.row.key, subject.calibration.features.window_rows
        unseen_from = to_datetime(np.datetime64(subject.predictor.model.spans["test_start"], "us"))
        after = max(unseen_from, now - timedelta(days=config.window_days))
        span = f"after {after:%Y-%m-%d %H:%M}"
        signals = self._signals.read(session, key, rows=rows, after=after, now=now)
        if signals is None:
            return {"state": "no_candles", "detail": f"no candle of {key} that closed {span} is stored"}
        as_of = signals.newest_close
        checked = drift.checked_until(session, key, subject.row.id)
        if checked is not None and checked >= as_of:
            return _checked_before(checked)
        features, short = signals.newest(key, rows, after=after), None
        if len(features) < rows:  # the null is of full windows
            detail = f"{len(features)} signals of {key} {span}; at least {rows} are needed"
            short = {"rows": len(features), "limit": rows, "detail": detail}
        return _Current(as_of, features, short)

    def _record(
        self, session: Session, key: ModelKey, sample: _Sample, slot: datetime | None, now: datetime
    ) -> tuple[dict[str, Any], Retraining | None]:
        """Checks, alerts and what is done about them, in one transaction."""
        lock(session, "drift", str(key))
        champion = registry.champion(session, key)
        if champion is None or champion.id != sample.model.id:
            detail = f"version {sample.model.version} was replaced while it was checked"
            return {"state": "champion_changed", "detail": detail}, None
        snoozed = drift_actions.snoozed_until(session, key, now)
        recorded: list[UUID] = []
        for check, severity in zip(sample.checks, sample.severities(), strict=True):
            found = drift.record(
                session,
                key,
                champion.id,
                check,
                severity,
                as_of=sample.as_of,
                limits=sample.limits,
                snoozed_until=snoozed if severity in ACTED_ON else None,
            )
            if found is None:
                return _checked_before(sample.as_of), None  # at this very moment, by another worker
            recorded.append(found)
        alarm = _alarm(key, sample, recorded)
        report = _report(sample, recorded, alarm, snoozed)
        if alarm.severity not in ACTED_ON or snoozed is not None:
            return report | {"action": None}, None
        action, retraining = act(session, self._resources, alarm, slot=slot, now=now)
        return report | {"action": action_json(action)}, retraining

    def _served(self, key: ModelKey, row: registry.ModelRow) -> Served | str:
        """The champion in memory, or the code of the reason why it cannot answer."""
        found = self._models.find(key)
        if isinstance(found, str) or found.model_id != row.id:
            # It is trusted for some seconds, in which the champion may have changed.
            self._models.forget(key)
            found = self._models.find(key)
        if found == "store_unavailable":
            raise StoreUnavailable(f"{key}: the champion cannot be read")
        if isinstance(found, str):
            return found
        return found if found.model_id == row.id else "champion_changed"


def _compare(
    session: Session,
    subject: _Subject,
    current: _Current,
    limits: SeverityLimits,
    budget: float,
    now: datetime,
) -> tuple[DriftCheck, ...]:
    """Every kind, as far as there is something to compare. ``budget``: false retrainings a month."""
    row, calibration = subject.row, subject.calibration
    live = live_until(now, row.interval) - now
    assert row.promoted_at is not None
    answers = drift.matured(session, row.key, row.id, since=row.promoted_at, until=now, live=live)
    outcomes = check_outcomes(
        calibration.outcomes,
        answers.confidence,
        answers.label,
        answers.regime,
        answers.signal_time,
        budget_per_month=budget,
    )
    if current.short is not None:
        return outcomes
    reference, features = subject.reference, current.features
    confidence = subject.predictor.confidence(features)
    return (
        check_features(reference, calibration.features, features, limits, budget_per_month=budget),
        check_confidence(reference, calibration.confidence, confidence, limits, budget_per_month=budget),
        *outcomes,
    )


def _checked_before(as_of: datetime) -> dict[str, Any]:
    detail = f"checked by the candle that closed at {as_of:%Y-%m-%d %H:%M}; none is newer"
    return {"state": "no_new_candles", "as_of": as_of.isoformat(), "detail": detail}


def _alarm(key: ModelKey, sample: _Sample, recorded: list[UUID]) -> Alarm:
    """The worst of the kinds; of equals the one with the highest score."""
    severities = sample.severities()
    worst = max(
        range(len(severities)),
        key=lambda index: (SEVERITIES.index(severities[index]), sample.checks[index].score),
    )
    return Alarm(
        key=key,
        model_id=sample.model.id,
        alert_id=recorded[worst],
        as_of=sample.as_of,
        severity=severities[worst],
    )


def _report(sample: _Sample, recorded: list[UUID], alarm: Alarm, snoozed: datetime | None) -> dict[str, Any]:
    short = {}
    if sample.short is not None:
        detail = f"features and scores were not checked: {sample.short['detail']}"
        short = sample.short | {"detail": detail, "not_checked": ["features", "scores"]}
    return {
        "state": "checked",
        "version": sample.model.version,
        "as_of": sample.as_of.isoformat(),
        "severity": alarm.severity,
        "score": max(check.score for check in sample.checks),
        "checks": [
            {
                "alert_id": str(found),
                "kind": check.kind,
                "severity": severity,
                "score": check.score,
                "p_value": check.p_value,
                "rows": check.current_rows,
            }
            for found, check, severity in zip(recorded, sample.checks, sample.severities(), strict=True)
        ],
        "snoozed_until": snoozed and snoozed.isoformat(),
        **short,
    }
