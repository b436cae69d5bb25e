"""Sums, spreads and ranks over the last ``window`` values, each computed afresh.

A running total (pandas, TA-Lib's STDDEV, BBANDS and CORREL) carries its rounding errors along and
cancels badly on raw prices, so that a value depends on where the array began. Here every window is
summed by itself in one order: a short array gives the same bits as a long one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["ema_lookback", "rolling_rank", "rolling_slope", "rolling_std", "rolling_sum", "wilder_lookback"]

Floats = NDArray[np.float64]

RANK_CHUNK = 8192
"""Values ranked at a time: the comparisons of one chunk stay in the processor's cache."""

MEMORY = 1e-12
"""An average without an end has forgotten a candle once its weight is under this."""


def ema_lookback(span: float) -> int:
    """Candles after which an exponential average with ``alpha = 2 / (span + 1)`` has forgotten its start."""
    return math.ceil(math.log(MEMORY) / math.log1p(-2 / (span + 1)))


def wilder_lookback(period: int) -> int:
    """The same for Wilder's smoothing, ``alpha = 1 / period``."""
    return ema_lookback(2 * period - 1)


def rolling_sum(values: Floats, window: int) -> Floats:
    """(n,) sum of the last ``window`` values; NaN for the first ``window - 1``."""
    total = np.full(len(values), np.nan)
    if len(values) >= window:
        inside = total[window - 1 :]
        inside[:] = values[: len(inside)]
        for start in range(1, window):
            inside += values[start : start + len(inside)]
    return total


def rolling_std(values: Floats, window: int) -> Floats:
    """(n,) population standard deviation of the last ``window`` values, in two passes; NaN at the start."""
    deviation = np.full(len(values), np.nan)
    if len(values) >= window:
        mean = rolling_sum(values, window)[window - 1 :] / window
        square = np.zeros(len(mean))
        for start in range(window):
            square += (values[start : start + len(mean)] - mean) ** 2
        deviation[window - 1 :] = np.sqrt(square / window)
    return deviation


def rolling_slope(values: Floats, window: int) -> Floats:
    """(n,) slope of the least-squares line through the last ``window`` values, a step; NaN at the start."""
    slope = np.full(len(values), np.nan)
    if len(values) >= window:
        place = np.arange(window) - (window - 1) / 2
        inside = np.zeros(len(values) - window + 1)
        for start in range(window):
            inside += place[start] * values[start : start + len(inside)]
        slope[window - 1 :] = inside / (place**2).sum()
    return slope


def rolling_rank(values: Floats, window: int) -> Floats:
    """(n,) share of the last ``window`` values, the newest included, that are strictly below the newest.

    Exact: a count divided by ``window``, so from 0 to ``1 - 1 / window``, without interpolation; equal
    values count as not below. NaN where the window is incomplete or holds a NaN.
    """
    rank = np.full(len(values), np.nan)
    if len(values) < window:
        return rank
    windows = sliding_window_view(values, window).T
    newest = windows[-1]
    for start in range(0, len(newest), RANK_CHUNK):
        stop = min(start + RANK_CHUNK, len(newest))
        below = np.zeros(stop - start, dtype=np.uint32)
        # At most 255 comparisons at a time, so that they add up in uint8 without a cast.
        for part in range(0, window, 255):
            smaller = windows[part : part + 255, start:stop] < newest[start:stop]
            below += smaller.view(np.uint8).sum(axis=0, dtype=np.uint8)
        rank[window - 1 + start : window - 1 + stop] = below / window
    missing = np.concatenate([[0], np.cumsum(np.isnan(values))])
    rank[window - 1 :][missing[window:] > missing[:-window]] = np.nan
    return rank
