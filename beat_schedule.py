"""The schedule that the system starts with, in UTC. Data only.

An entry's queue is where its work is done. A periodic message has an expiry, in seconds: by then the next
one has been sent. A training has none: its job's row waits, and of a backlog only the newest data cut of a
key is trained. What an operator adds, removes or pauses at run time lives in Redis and is not overwritten
from here (worker/schedule.py).
"""

from __future__ import annotations

from typing import Any, Final

from celery.schedules import crontab, schedule

from runtime.queues import DRIFT, MAINTENANCE, TRAINING

__all__ = ["BEAT_SCHEDULE", "SCHEDULED", "SWEEP_JOBS"]

SCHEDULED: Final = "schedule"
"""The reason that a scheduled training carries on its job's row."""

SWEEP_JOBS: Final = "sweep-jobs"

_TRAIN: Final[dict[str, Any]] = {
    "task": "tasks.train",
    "kwargs": {"reason": SCHEDULED},
    "options": {"queue": TRAINING},
}

BEAT_SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    # Training: an hour apart, so that the day's first job makes the pooled fit and the others find it.
    "train-BTCUSDT-trending": {
        **_TRAIN, "args": ["BTCUSDT", "trending"], "schedule": crontab(minute=0, hour=3),
    },
    "train-BTCUSDT-sideways": {
        **_TRAIN, "args": ["BTCUSDT", "sideways"], "schedule": crontab(minute=0, hour=4),
    },
    "train-BTCUSDT-volatile": {
        **_TRAIN, "args": ["BTCUSDT", "volatile"], "schedule": crontab(minute=0, hour=5),
    },
    "train-BTCUSDT-consolidation": {
        **_TRAIN, "args": ["BTCUSDT", "consolidation"], "schedule": crontab(minute=0, hour=6),
    },
    "train-ETHUSDT-trending": {
        **_TRAIN, "args": ["ETHUSDT", "trending"], "schedule": crontab(minute=0, hour=7),
    },
    "train-ETHUSDT-sideways": {
        **_TRAIN, "args": ["ETHUSDT", "sideways"], "schedule": crontab(minute=0, hour=8),
    },
    # The fallback models, on Sundays before the day's first job.
    "train-BTCUSDT-all": {
        **_TRAIN, "args": ["BTCUSDT", "all"], "schedule": crontab(minute=0, hour=1, day_of_week=0),
    },
    "train-ETHUSDT-all": {
        **_TRAIN, "args": ["ETHUSDT", "all"], "schedule": crontab(minute=0, hour=2, day_of_week=0),
    },
    # Upkeep.
    SWEEP_JOBS: {
        "task": "tasks.sweep_jobs",
        "schedule": schedule(20),
        "options": {"queue": MAINTENANCE, "expires": 20},
    },
    "sync-candles": {
        "task": "tasks.sync_all_candles",
        "schedule": crontab(),  # each minute it sends only for the series whose next candle has closed
        "options": {"queue": MAINTENANCE, "expires": 60},
    },
    # Predictions: answers from Redis into PostgreSQL, and what became of them.
    "drain-predictions": {
        "task": "tasks.drain_predictions",
        "schedule": schedule(2),
        "options": {"queue": MAINTENANCE, "expires": 2},
    },
    "resolve-outcomes": {
        "task": "tasks.resolve_outcomes",
        "schedule": crontab(minute="*/5"),
        "options": {"queue": MAINTENANCE, "expires": 300},
    },
    # Drift: every champion each hour, what was decided about it, and those that answer in shadow.
    "check-drift": {
        "task": "tasks.check_all_drift",
        "schedule": crontab(minute=5),
        "options": {"queue": DRIFT, "expires": 3600},
    },
    "run-drift-actions": {
        "task": "tasks.run_drift_actions",
        "schedule": crontab(),
        "options": {"queue": MAINTENANCE, "expires": 60},
    },
    "score-shadows": {
        "task": "tasks.score_shadows",
        "schedule": crontab(minute="*/5"),
        "options": {"queue": DRIFT, "expires": 300},
    },
    "review-champions": {
        "task": "tasks.review_champions",
        "schedule": crontab(minute="3-59/5"),
        "options": {"queue": DRIFT, "expires": 300},
    },
}  # fmt: skip
