"""What features are computed from: rows asked for, and earlier candles to look back on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml import regimes
from ml.candles import Candles
from ml.regimes import RegimeMeasures

__all__ = ["FeatureWindow", "SharedRows", "read_shared"]

Floats = NDArray[np.float64]

DAY = 24 * 60 * 60 * 1_000_000
"""Microseconds."""


class SharedRows(NamedTuple):
    """What several features take of a row, made once; of the rows asked for only."""

    measures: RegimeMeasures
    day_angle: Floats
    """Time of day of the close."""

    @property
    def atr(self) -> Floats:
        """What moves are measured in."""
        return self.measures.atr

    def of(self, values: Floats) -> Floats:
        """The rows asked for of a longer array that ends with them."""
        return values[len(values) - len(self.day_angle) :]


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


def read_shared(candles: Candles, last: int) -> SharedRows:
    """What features share of the ``last`` last candles."""
    close_time = candles.open_time[len(candles) - last :] + candles.step
    into_day = close_time.view(np.int64) % DAY
    return SharedRows(regimes.measure(candles, last), day_angle=into_day * (2 * np.pi / DAY))
