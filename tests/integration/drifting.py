"""A champion that drifts, a clock that stands where it is put, and what is done about it."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import redis
from sqlalchemy.orm import Session

from db import candles, drift, drift_actions, jobs, registry
from db.drift_actions import DriftAction
from db.models import TrainingJob
from ml.alarms import DriftCheck, SeverityLimits, severity_of
from ml.candles import Candles, to_datetime64
from ml.keys import ModelKey
from tasks.base import Resources
from tasks.drift_actions import Alarm, act, run_due
from tasks.retraining import Retraining
from tests.integration.db.rows import AS_OF, KEY, add_model, save_drift
from tests.real_candles import real_candles
from tests.trained import FixedClock, resources_of

ETH = ModelKey("ETHUSDT", "1h", "trending")
BNB = ModelKey("BNBUSDT", "1h", "trending")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LIMITS = SeverityLimits()
SCORES = {"critical": 0.5, "high": 0.25, "none": 0.05}


class System:
    """A database with a champion, a clock that stands where it is put, and what drift does there."""

    def __init__(self, database_url: str, **settings: Any) -> None:
        self.clock = FixedClock(AS_OF + 9 * HOUR)
        found = resources_of(database_url, AS_OF, **settings)
        self.resources = Resources(lambda: found.settings, lambda _: self.clock)
        self.champion()

    @property
    def now(self) -> datetime:
        return self.clock.moment

    def champion(self, key: ModelKey = KEY) -> int:
        with self.resources.transaction() as session:
            row = add_model(session, key)
            save_drift(session, row.id)
            registry.promote(session, row.id, now=self.now, actor="test", why="test", details={})
            return row.id

    def alert(self, severity: str, *, key: ModelKey = KEY, kind: Any = "features") -> Alarm:
        """A check of the champion, by the candle that closed at the clock's now."""
        check = DriftCheck(
            kind=kind,
            score=SCORES[severity],
            p_value=0.1,
            reference_rows=1,
            current_rows=1,
            statistic=1,
            level=1,
        )
        with self.resources.transaction() as session:
            model = registry.champion(session, key)
            assert model is not None
            assert severity_of(check.score, LIMITS) == severity
            found = drift.record(
                session, key, model.id, check, severity, as_of=self.now, limits=LIMITS, snoozed_until=None
            )
            assert found is not None
            return Alarm(key=key, model_id=model.id, alert_id=found, as_of=self.now, severity=severity)

    def act(
        self, severity: str, *, key: ModelKey = KEY, slot: datetime | None = None
    ) -> tuple[DriftAction, Retraining | None]:
        alarm = self.alert(severity, key=key)
        with self.resources.transaction() as session:
            return act(session, self.resources, alarm, slot=slot, now=self.now)

    def run(self, **later: float) -> tuple[dict[str, list[str]], list[Retraining]]:
        self.clock.moment += timedelta(**later)
        retrainings: list[Retraining] = []
        return run_due(self.resources, retrainings.append), retrainings

    def actions(self, key: ModelKey = KEY) -> list[DriftAction]:
        """Oldest first."""
        with self.resources.transaction() as session:
            return list(drift_actions.actions(session, key=key, limit=100))[::-1]

    def jobs(self) -> list[TrainingJob]:
        """Oldest first."""
        with self.resources.transaction() as session:
            return list(jobs.recent(session, 100))[::-1]

    def enqueue(self, job_id: str, key: ModelKey = KEY) -> str:
        with self.resources.transaction() as session:
            jobs.enqueue(session, job_id=job_id, key=key, reason="schedule", requested_by="beat", as_of=AS_OF)
        return job_id

    def finish(self, job_id: str, state: Any = "succeeded", **outcome: Any) -> None:
        with self.resources.transaction() as session:
            claim = jobs.claim(session, job_id, owner="test", lease=HOUR)
            assert isinstance(claim, jobs.Claimed)
            jobs.finish(session, job_id, claim.fencing_token, state=state, outcome=outcome)


def write_drifted(session: Session, start: datetime, *, ranges: float, volume: float) -> None:
    """Write BTC's real candles from ``start`` on with wider bars and more volume, as if they had been so."""
    whole = real_candles("BTCUSDT")
    later = whole.take(whole.open_time >= to_datetime64(start))
    middle = (later.open + later.close) / 2
    changed = Candles(
        "1h",
        later.open_time,
        later.open,
        middle + ranges * (later.high - middle),
        np.maximum(middle - ranges * (middle - later.low), 0.2 * middle),
        later.close,
        volume * later.volume,
    )
    candles.write(session, symbol="BTCUSDT", interval="1h", candles=changed, source="test", now=start)


def sent(redis_url: str, queue: str = "celery") -> list[tuple[str, list[Any]]]:
    """(task id, arguments) of the messages of a queue, oldest first."""
    messages = raw(redis_url, queue)
    return [(one["headers"]["id"], json.loads(base64.b64decode(one["body"]))[0]) for one in messages]


def raw(redis_url: str, queue: str = "celery") -> list[dict[str, Any]]:
    """Messages of a queue as they lie there, oldest first; one of another priority lies elsewhere."""
    with redis.Redis.from_url(redis_url) as server:
        return [json.loads(message) for message in server.lrange(queue, 0, -1)][::-1]


REJECTED: dict[str, Any] = {
    "result": "rejected",
    "model_id": 7,
    "version": 4,
    "decision": {"reasons": ["f1 0.5 < 0.6", "auc"]},
}
