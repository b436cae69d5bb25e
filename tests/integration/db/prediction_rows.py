"""Predictions for tests, as the prediction log has them, and what became of them."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import predictions
from db.models import Prediction
from db.predictions import Outcome
from db.session import transaction
from tests.integration.db.rows import AS_OF

HOUR = timedelta(hours=1)
FEATURES = np.array([0.1, -np.inf, np.nan, 3e-39], np.float32)


def record(**changes: Any) -> dict[str, Any]:
    """An answer as the prediction log has it."""
    return {
        "id": str(uuid4()),
        "signal_time": AS_OF.isoformat(),
        "signal_id": None,
        "as_of": (AS_OF + timedelta(seconds=2)).isoformat(),
        "symbol": "BTCUSDT",
        "interval": "1h",
        "regime": "trending",
        "model_id": None,
        "served_regime": None,
        "role": "champion",
        "direction": 1,
        "patterns": ["CDLDOJI"],
        "pattern_confidence": 0.55,
        "confidence": 0.6,
        "decision": "accept",
        "abstain_reason": None,
        "expected_net_return_atr": 0.12,
        "out_of_distribution": 0.01,
        "model_age_seconds": 3600.5,
        "latency_ms": 1.25,
        "features": base64.b64encode(FEATURES.tobytes()).decode(),
        "entry_price": 8000.1,
        "atr": 55.5,
        "horizon_end": (AS_OF + 12 * HOUR).isoformat(),
        "metadata": {},
    } | changes


def outcome(row: dict[str, Any], **changes: Any) -> Outcome:
    known: dict[str, Any] = {
        "id": UUID(row["id"]),
        "signal_time": datetime.fromisoformat(row["signal_time"]),
        "label": 1,
        "label_end": AS_OF + 3 * HOUR,
        "net_return_atr": 0.8,
        "resolved_at": AS_OF + 13 * HOUR,
    }
    return Outcome(**(known | changes))


def write(engine: Engine, *records: dict[str, Any]) -> int:
    with transaction(engine) as session:
        return predictions.write(session, records)


def stored(engine: Engine) -> list[Prediction]:
    with transaction(engine) as session:
        return list(session.scalars(sa.select(Prediction).order_by(Prediction.signal_time, Prediction.id)))


def at(hours: int, **changes: Any) -> dict[str, Any]:
    moment = AS_OF + hours * HOUR
    return record(signal_time=moment.isoformat(), horizon_end=(moment + 12 * HOUR).isoformat(), **changes)
