"""The real hourly candles that the unit tests of the learning share, read once a process."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from feeds import samples
from ml.candles import Candles, resample

__all__ = ["real_candles"]


@cache
def real_candles(symbol: str = "BTCUSDT") -> Candles:
    """About 17,500 hours, 2017-10 to 2019-10, with their gaps; nothing is cleaned."""
    return resample(samples.load(symbol, now=datetime(2020, 1, 1, tzinfo=UTC)), "1h")
