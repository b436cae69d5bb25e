"""Real candles, the signals that training finds in them, and answers to these as a worker records them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest
import sqlalchemy as sa

from db import candles, predictions
from db.models import EvaluationRow, ModelRow, Prediction
from ml.candles import Candles, to_datetime
from ml.config import LabelConfig
from ml.dataset import label_signals, read_market
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from ml.rows import SignalRows
from runtime.settings import Settings
from tasks import outcomes
from tasks.base import Resources
from tests.integration.db.rows import add_model
from tests.real_candles import real_candles

HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
HORIZON = 12 * HOUR
LABELS = LabelConfig()
NAMES = UUID(int=3)
LATER = datetime(2024, 1, 1, tzinfo=UTC)


class SetClock:
    def __init__(self, now: datetime) -> None:
        self.at = now

    def now(self) -> datetime:
        return self.at


class System:
    """A database, a clock that stands where it is put, and what the tests do with them."""

    def __init__(self, database_url: str, **options: Any) -> None:
        self.clock = SetClock(LATER)
        settings = Settings(
            database_url=database_url, redis_url="redis://127.0.0.1:1/0", live_window_days=3650, **options
        )
        self.resources = Resources(lambda: settings, lambda _: self.clock)

    def store(self, series: Candles, *, now: datetime = LATER, symbol: str = "BTCUSDT") -> None:
        with self.resources.transaction() as session:
            candles.write(session, symbol=symbol, interval="1h", candles=series, source="test", now=now)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        with self.resources.transaction() as session:
            assert predictions.write(session, records) == len(records)

    def model(self, key: ModelKey, labels: dict[str, Any] | None = None) -> int:
        with self.resources.transaction() as session:
            row = add_model(session, key)
            session.execute(
                sa.update(ModelRow).where(ModelRow.id == row.id).values(config={"labels": labels or {}})
            )
            return row.id

    def run(self, now: datetime) -> dict[str, Any]:
        self.clock.at = now
        return outcomes.resolve_due(self.resources)

    def predictions(self) -> list[Prediction]:
        with self.resources.transaction() as session:
            query = sa.select(Prediction).order_by(Prediction.signal_time, Prediction.direction)
            return list(session.scalars(query))

    def resolved(self) -> list[Prediction]:
        return [row for row in self.predictions() if row.resolved_at is not None]

    def live(self) -> list[EvaluationRow]:
        with self.resources.transaction() as session:
            query = sa.select(EvaluationRow).order_by(EvaluationRow.id)
            return list(session.scalars(query))


@cache
def traded() -> Candles:
    """Half a year with two gaps of over two candles in it."""
    whole = real_candles()
    return whole.take(whole.open_time >= np.datetime64("2018-12-20")).until(datetime(2019, 7, 5, tzinfo=UTC))


@cache
def crashed() -> Candles:
    """The same with a tick in it that looks like noise, and stopped every long position."""
    low = traded().low.copy()
    low[2000] /= 3
    return with_columns(traded(), low=low)


def with_columns(series: Candles, **columns: Any) -> Candles:
    names = ("open", "high", "low", "close", "volume")
    return Candles("1h", series.open_time, *(columns.get(name, getattr(series, name)) for name in names))


@cache
def batch(labels: LabelConfig = LABELS, crash: bool = False) -> SignalRows:
    """What training makes of the same candles."""
    candles = crashed() if crash else traded()
    market = read_market(clean(candles).candles)
    return label_signals(market, symbol="BTCUSDT", config=labels, traded=candles)


def record(rows: SignalRows, row: int, **changes: Any) -> dict[str, Any]:
    """The answer to one of the batch's signals, as an inference worker records it."""
    time = to_datetime(rows.close_time[row])
    made: dict[str, Any] = dict.fromkeys(predictions.COLUMNS)
    confidence = round(0.45 + (row * 7 % 23) / 100, 2)
    return (
        made
        | {
            "id": str(uuid5(NAMES, f"{row}")),
            "signal_time": time.isoformat(),
            "as_of": time.isoformat(),
            "symbol": "BTCUSDT",
            "interval": "1h",
            "regime": REGIMES[rows.regime[row]],
            "role": "champion",
            "direction": int(rows.direction[row]),
            "patterns": ["CDLDOJI"],
            "pattern_confidence": float(rows.pattern_confidence[row]),
            "confidence": confidence,
            "decision": "accept" if confidence > 0.6 else "reject",
            "entry_price": float(rows.entry_price[row]),
            "atr": float(rows.atr[row]),
            "horizon_end": (time + HORIZON).isoformat(),
            "metadata": {"threshold": 0.55},
        }
        | changes
    )


def abstained(rows: SignalRows, row: int, **changes: Any) -> dict[str, Any]:
    unknown: dict[str, Any] = {
        "confidence": None,
        "decision": "abstain",
        "abstain_reason": "no_model",
        "metadata": {},
    }
    return record(rows, row, **unknown | changes)


def expected(rows: SignalRows, *, until: datetime) -> list[tuple[Any, ...]]:
    """(label, its end, net return, reason) of each whose horizon has ended."""
    net = rows.gross_return_atr - rows.cost_atr
    return [
        (None, None, None, "gap")
        if np.isnan(rows.label[row])
        else (rows.label[row], to_datetime(rows.label_end[row]), pytest.approx(net[row], abs=1e-12), None)
        for row in range(len(rows))
        if to_datetime(rows.close_time[row]) + HORIZON <= until
    ]


def got(found: Sequence[Prediction]) -> list[tuple[Any, ...]]:
    return [(row.label, row.label_end, row.net_return_atr, row.details.get("unresolved")) for row in found]
