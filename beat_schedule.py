"""The schedule that the system starts with, in UTC. Data only.

An entry's queue is where its work is done; its expiry, in seconds, is when its message has become
stale: by then the next one has been sent. What an operator adds, removes or pauses at run time lives
in Redis and is not overwritten from here (worker/schedule.py).
"""

from __future__ import annotations

from typing import Any, Final

from celery.schedules import crontab, schedule

from runtime.queues import MAINTENANCE, TRAINING

__all__ = ["BEAT_SCHEDULE", "SCHEDULED", "SWEEP_JOBS"]

DAY_SECONDS: Final = 86_400

SCHEDULED: Final = "schedule"
"""The reason that a scheduled training carries on its job's row."""

SWEEP_JOBS: Final = "sweep-jobs"

_DAILY: Final[dict[str, Any]] = {
    "task": "tasks.train",
    "kwargs": {"reason": SCHEDULED},
    "options": {"queue": TRAINING, "expires": DAY_SECONDS},
}
_WEEKLY: Final[dict[str, Any]] = {
    "task": "tasks.train",
    "kwargs": {"reason": SCHEDULED},
    "options": {"queue": TRAINING, "expires": 7 * DAY_SECONDS},
}

BEAT_SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    # Training: an hour apart, so that the day's first job makes the pooled fit and the others find it.
    "train-BTCUSDT-trending": {
        **_DAILY, "args": ["BTCUSDT", "trending"], "schedule": crontab(minute=0, hour=3),
    },
    "train-BTCUSDT-sideways": {
        **_DAILY, "args": ["BTCUSDT", "sideways"], "schedule": crontab(minute=0, hour=4),
    },
    "train-BTCUSDT-volatile": {
        **_DAILY, "args": ["BTCUSDT", "volatile"], "schedule": crontab(minute=0, hour=5),
    },
    "train-BTCUSDT-consolidation": {
        **_DAILY, "args": ["BTCUSDT", "consolidation"], "schedule": crontab(minute=0, hour=6),
    },
    "train-ETHUSDT-trending": {
        **_DAILY, "args": ["ETHUSDT", "trending"], "schedule": crontab(minute=0, hour=7),
    },
    "train-ETHUSDT-sideways": {
        **_DAILY, "args": ["ETHUSDT", "sideways"], "schedule": crontab(minute=0, hour=8),
    },
    # The fallback models, on Sundays before the day's first job.
    "train-BTCUSDT-all": {
        **_WEEKLY, "args": ["BTCUSDT", "all"], "schedule": crontab(minute=0, hour=1, day_of_week=0),
    },
    "train-ETHUSDT-all": {
        **_WEEKLY, "args": ["ETHUSDT", "all"], "schedule": crontab(minute=0, hour=2, day_of_week=0),
    },
    # Upkeep.
    SWEEP_JOBS: {
        "task": "tasks.sweep_jobs",
        "schedule": schedule(20),
        "options": {"queue": MAINTENANCE, "expires": 20},
    },
    "sync-candles": {
        "task": "tasks.sync_all_candles",
        "schedule": crontab(minute=1),
        "options": {"queue": MAINTENANCE, "expires": 3_600},
    },
}  # fmt: skip
