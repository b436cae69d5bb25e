"""The queues, and which task goes to which."""

from __future__ import annotations

from typing import Final

__all__ = ["DEAD_LETTER", "DRIFT", "INFERENCE", "MAINTENANCE", "QUEUES", "ROUTES", "TRAINING"]

TRAINING: Final = "training"
DRIFT: Final = "drift"
INFERENCE: Final = "inference"
MAINTENANCE: Final = "maintenance"
"""Short jobs: candle sync, sweeps, alerts."""
DEAD_LETTER: Final = "dead_letter"
"""Messages that no task could accept; nothing consumes it, a person looks."""

QUEUES: Final = (TRAINING, DRIFT, INFERENCE, MAINTENANCE)

ROUTES: Final[dict[str, dict[str, str]]] = {
    "tasks.train": {"queue": TRAINING},
    "tasks.check_drift": {"queue": DRIFT},
    "tasks.check_all_drift": {"queue": DRIFT},
    "tasks.score_shadows": {"queue": DRIFT},
    "tasks.review_champions": {"queue": DRIFT},
    "tasks.run_drift_actions": {"queue": MAINTENANCE},
    "tasks.predict": {"queue": INFERENCE},
    "tasks.drain_predictions": {"queue": MAINTENANCE},
    "tasks.resolve_outcomes": {"queue": MAINTENANCE},
    "tasks.detect_signals": {"queue": MAINTENANCE},
    "tasks.sync_candles": {"queue": MAINTENANCE},
    "tasks.sync_all_candles": {"queue": MAINTENANCE},
    "tasks.sweep_jobs": {"queue": MAINTENANCE},
}
