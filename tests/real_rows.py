"""The rows of the real hourly candles, and what a small booster makes of the features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ml.config import TrainingConfig
from ml.dataset import label_signals, read_market
from ml.drift import Reference, make_reference
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from ml.rows import SignalRows
from ml.training import fit_booster, own_rows, pool_rows
from tests.real_candles import real_candles

__all__ = ["KEYS", "TrainedRows", "trained_rows"]

SYMBOLS = ("BTCUSDT", "ETHUSDT")
KEYS = tuple(ModelKey(symbol, "1h", regime) for symbol in SYMBOLS for regime in REGIMES)
CONFIG = TrainingConfig.from_mapping({"fit": {"n_estimators": 60, "learning_rate": 0.05, "threads": 1}})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRows:
    """One key's own rows, before and after its test span begins."""

    key: ModelKey
    trained: SignalRows
    test: SignalRows
    importance: NDArray[np.float64]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        return self.trained.feature_names

    def reference(self) -> Reference:
        """As training keeps it."""
        return make_reference(self.trained.features, self.names, self.importance)


@cache
def trained_rows(key: ModelKey) -> TrainedRows:
    """A key of BTC or ETH, 1h: a booster on all their rows says which features matter."""
    tables, importance, test_start = _fitted()
    own = own_rows(key, tables[SYMBOLS.index(key.symbol)])
    before = own.close_time < test_start
    return TrainedRows(
        key=key, trained=own.take(before), test=own.take(~before), importance=np.array(importance)
    )


@cache
def _fitted() -> tuple[list[SignalRows], tuple[float, ...], np.datetime64]:
    tables = []
    for symbol in SYMBOLS:
        candles = real_candles(symbol)
        market = read_market(clean(candles).candles)
        tables.append(label_signals(market, symbol=symbol, config=CONFIG.labels, traded=candles))
    fitted = fit_booster(pool_rows(KEYS[0], tables, "all"), CONFIG, interval="1h")
    return tables, fitted.importance, fitted.times.test_start
