"""What features are computed from: rows asked for, and earlier candles to look back on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml import regimes
from ml.candles import Candles
from ml.indicators import ta
from ml.regimes import RegimeMeasures
from ml.rolling import rolling_sum

__all__ = ["FeatureWindow", "SharedRows", "read_shared"]

Floats = NDArray[np.float64]

DAY = 24 * 60 * 60 * 1_000_000
"""Microseconds."""


class SharedRows(NamedTuple):
    """What several features take of a row, made once; of the rows asked for only."""

    rows: int
    measures: RegimeMeasures
    atr: Floats
    """ATR(14): what moves are measured in."""
    plus: Floats
    """PLUS_DI(14), 0..100."""
    minus: Floats
    """MINUS_DI(14), 0..100."""
    close: Floats
    day_angle: Floats
    """Time of day of the close."""

    def of(self, values: Floats) -> Floats:
        """The rows asked for of a longer array that ends with them."""
        return values[len(values) - self.rows :]


class FeatureWindow(NamedTuple):
    """The rows asked for are the last ones; every array has the same earlier candles before them."""

    now: SharedRows
    candles: Candles
    start: int
    """First row of the candles that the arrays hold."""

    @property
    def open(self) -> Floats:
        """Opening prices."""
        return self.candles.open[self.start :]

    @property
    def high(self) -> Floats:
        """Highest prices."""
        return self.candles.high[self.start :]

    @property
    def low(self) -> Floats:
        """Lowest prices."""
        return self.candles.low[self.start :]

    @property
    def close(self) -> Floats:
        """Closing prices."""
        return self.candles.close[self.start :]

    @property
    def volume(self) -> Floats:
        """Base volumes."""
        return self.candles.volume[self.start :]

    @property
    def hlc(self) -> tuple[Floats, Floats, Floats]:
        """What many of TA-Lib's functions take."""
        candles, start = self.candles, self.start
        return candles.high[start:], candles.low[start:], candles.close[start:]

    def sum(self, values: Floats, window: int) -> Floats:
        """Of the last ``window`` values, for the rows asked for."""
        return rolling_sum(values, window, self.now.rows)


def read_shared(candles: Candles, last: int) -> SharedRows:
    """What features share of the ``last`` last candles."""
    first = len(candles) - last
    measures = regimes.measure(candles, last)
    smoothed = slice(max(first - regimes.ATR_LOOKBACK, 0), None)
    hlc = candles.high[smoothed], candles.low[smoothed], candles.close[smoothed]
    into_day: NDArray[np.int64] = (candles.open_time[first:] + candles.step).view(np.int64) % DAY
    return SharedRows(
        rows=last,
        measures=measures,
        atr=measures.atr,
        plus=ta.PLUS_DI(*hlc, regimes.PERIOD)[-last:],
        minus=ta.MINUS_DI(*hlc, regimes.PERIOD)[-last:],
        close=candles.close[first:],
        day_angle=into_day * np.float64(2 * np.pi / DAY),
    )
