"""The four weeks after the trained champions' cut: real signals, answered by whoever is champion then."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final
from uuid import UUID, uuid5

import numpy as np
import sqlalchemy as sa

from db import artifacts, predictions, references, registry
from db.models import AuditEntry, EvaluationRow, ModelRow, Prediction
from ml.artifact import read_model, sha256_hex, to_bytes
from ml.calibration import SigmoidCalibration
from ml.candles import to_datetime
from ml.config import TrainingConfig
from ml.dataset import build_rows
from ml.inference import judge
from ml.keys import ALL_REGIMES, REGIMES, ModelKey
from ml.noise import clean
from ml.patterns import pattern_names
from ml.rows import SignalRows
from runtime.settings import Settings
from tasks.base import Resources
from tasks.outcomes import resolve_due
from tasks.stored_model import load
from tests.real_candles import real_candles
from tests.trained import CUT, FixedClock

__all__ = [
    "CUT",
    "DAY",
    "END",
    "HOUR",
    "INVERTED",
    "KEY",
    "LIKE_THE_TREES",
    "NAMES",
    "START",
    "Weeks",
    "signals",
]

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
START: Final = CUT + HOUR
END: Final = CUT + 28 * DAY
"""Close of the newest candle."""
KEY: Final = ModelKey("BTCUSDT", "1h", "trending")
NAMES: Final = UUID(int=7)
INVERTED: Final = SigmoidCalibration(-8.0, -3.0)
"""The trees read the wrong way round, and far too sure of it."""
LIKE_THE_TREES: Final = SigmoidCalibration(0.5, 0.1)
"""A plain one, which differs from what the champion has."""


@cache
def signals() -> SignalRows:
    """Every signal of BTC after the cut, as training finds and labels it."""
    rows = build_rows(clean(real_candles()).candles, symbol="BTCUSDT", config=TrainingConfig().labels)
    return rows.take(rows.close_time > np.datetime64(START.replace(tzinfo=None)))


class Weeks:
    """A copy of the trained database, a clock that stands where it is put, and what tests do with them."""

    def __init__(self, database_url: str, **options: Any) -> None:
        self.clock = FixedClock(START)
        options = {"redis_url": "redis://127.0.0.1:1/0", "database_url": database_url} | options
        settings = Settings(**options)
        self.resources = Resources(lambda: settings, lambda _: self.clock)

    def at(self, moment: datetime) -> Resources:
        """The resources, once it is that late."""
        self.clock.moment = moment
        return self.resources

    def champion(self, key: ModelKey = KEY) -> ModelRow:
        with self.resources.transaction() as session:
            row = registry.champion(session, key)
            assert row is not None
            return row

    def model(self, model_id: int) -> ModelRow:
        with self.resources.transaction() as session:
            return session.get_one(ModelRow, model_id)

    def variant(self, calibration: SigmoidCalibration, key: ModelKey = KEY) -> ModelRow:
        """A candidate that differs from the champion in what it makes of its trees' margin."""
        with self.resources.transaction() as session:
            champion = registry.champion(session, key)
            assert champion is not None
            model = read_model(artifacts.get(session, champion.artifact_sha256), champion.artifact_sha256)
            body = to_bytes(replace(model, calibration=calibration))
            artifacts.put(
                session, sha256=sha256_hex(body), body=body, kind="model", address=None, metadata={}
            )
            row = registry.add(
                session,
                key=key,
                artifact_sha256=sha256_hex(body),
                booster_sha256=champion.booster_sha256,
                job_id=champion.job_id,
                as_of=champion.as_of,
                data_cut=champion.data_cut,
                config=champion.config,
                config_digest=champion.config_digest,
                metrics=champion.metrics,
                decision=champion.decision,
                state="candidate",
                metadata={},
            )
            reference = references.load(session, champion.id)
            nulls = references.load_calibration(session, champion.id)
            assert reference is not None and nulls is not None
            references.save(session, row.id, reference)
            references.save_calibration(session, row.id, nulls)
            return row

    def promote(self, model_id: int, moment: datetime, **options: Any) -> None:
        with self.at(moment).transaction() as session:
            registry.promote(
                session, model_id, now=moment, actor="a test", why="a test", details={}, **options
            )

    def to_shadow(self, model_id: int, moment: datetime, **shadow: Any) -> None:
        """Let a candidate answer in shadow, by options of its own."""
        with self.at(moment).transaction() as session:
            row = registry.move(
                session, model_id, "shadow", now=moment, actor="a test", why="a test", details={}
            )
            row.config = row.config | {"shadow": shadow}

    def answer(self, since: datetime, until: datetime, key: ModelKey = KEY, **changes: Any) -> int:
        """The champion's answers to its signals of a span, two seconds after each; how many."""
        rows, regime = signals(), None if key.regime == ALL_REGIMES else REGIMES.index(key.regime)
        times = [to_datetime(close) for close in rows.close_time]
        fits = [
            row
            for row, time in enumerate(times)
            if since < time <= until and regime in (None, int(rows.regime[row]))
        ]
        with self.resources.transaction() as session:
            champion = registry.champion(session, key)
            assert champion is not None
            records = _records(session, champion, rows, fits, changes)
            return predictions.write(session, records)

    def resolve(self, moment: datetime) -> None:
        resolve_due(self.at(moment))

    def predictions(self, role: str | None = None) -> list[Prediction]:
        with self.resources.transaction() as session:
            query = sa.select(Prediction).order_by(Prediction.signal_time, Prediction.direction)
            return list(session.scalars(query if role is None else query.where(Prediction.role == role)))

    def evaluations(self, kind: str) -> list[EvaluationRow]:
        with self.resources.transaction() as session:
            query = sa.select(EvaluationRow).where(EvaluationRow.kind == kind).order_by(EvaluationRow.id)
            return list(session.scalars(query))

    def audit(self, key: ModelKey = KEY) -> list[AuditEntry]:
        with self.resources.transaction() as session:
            query = sa.select(AuditEntry).where(AuditEntry.subject == str(key)).order_by(AuditEntry.id)
            return list(session.scalars(query))


def _records(
    session: Any, champion: ModelRow, rows: SignalRows, fits: Sequence[int], changes: dict[str, Any]
) -> list[dict[str, Any]]:
    predictor = load(session, champion)
    judged = judge(predictor, rows.features[fits])
    found = []
    for index, row in enumerate(fits):
        time = to_datetime(rows.close_time[row])
        found.append(
            {
                "id": str(uuid5(NAMES, f"{champion.id} {row} {sorted(changes.items())}")),
                "signal_time": time.isoformat(),
                "as_of": (time + timedelta(seconds=2)).isoformat(),
                "symbol": "BTCUSDT",
                "interval": "1h",
                "regime": REGIMES[rows.regime[row]],
                "model_id": champion.id,
                "served_regime": champion.regime,
                "role": "champion",
                "direction": int(rows.direction[row]),
                "patterns": list(pattern_names(int(rows.patterns[row]))),
                "pattern_confidence": float(rows.pattern_confidence[row]),
                "confidence": float(judged.confidence[index]),
                "decision": "accept" if judged.accept[index] else "reject",
                "expected_net_return_atr": float(judged.expected_net_return_atr[index]),
                "out_of_distribution": float(judged.out_of_distribution[index]),
                "features": base64.b64encode(rows.features[row].astype("<f4").tobytes()).decode(),
                "entry_price": float(rows.entry_price[row]),
                "atr": float(rows.atr[row]),
                "horizon_end": (time + 12 * HOUR).isoformat(),
                "metadata": {"source": "stored", "threshold": predictor.model.threshold.value},
            }
            | changes
        )
    return found
