"""What features are computed from: rows asked for, and earlier candles to look back on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml import regimes
from ml.candles import Candles
from ml.regimes import RegimeMeasures

__all__ = ["FeatureWindow", "SharedRows", "read_window"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SharedRows:
    """What several features take of a row, made once; of the rows asked for only."""

    measures: RegimeMeasures
    unit: Floats
    """ATR(14), NaN where nothing moved: what moves are measured in."""
    day_angle: Floats
    """Time of day of the close."""

    def of(self, values: Floats) -> Floats:
        """The rows asked for of a longer array that ends with them."""
        return values[len(values) - len(self.unit) :]


class FeatureWindow(NamedTuple):
    """The rows asked for are the last ones; every array has the same earlier candles before them."""

    now: SharedRows
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    log_close: Floats
    step: Floats
    """Log return."""

    @property
    def hlc(self) -> tuple[Floats, Floats, Floats]:
        """What many of TA-Lib's functions take."""
        return self.high, self.low, self.close

    def since(self, row: int) -> FeatureWindow:
        """The same without the candles before ``row``."""
        return FeatureWindow(self.now, *[column[row:] for column in self[1:]])


def read_window(candles: Candles, last: int) -> FeatureWindow:
    """All of the candles, of which the ``last`` last are asked for."""
    measures = regimes.measure(candles, last)
    unit = np.where(measures.atr > 0, measures.atr, np.nan)
    close_time = candles.open_time[len(candles) - last :] + candles.step
    into_day = close_time - close_time.astype("datetime64[D]")
    log_close = np.log(candles.close)
    step = np.concatenate([[np.nan], log_close[1:] - log_close[:-1]])
    return FeatureWindow(
        SharedRows(measures, unit, day_angle=2 * np.pi * (into_day / np.timedelta64(1, "D"))),
        *(candles.open, candles.high, candles.low, candles.close, candles.volume),
        *(log_close, step),
    )
