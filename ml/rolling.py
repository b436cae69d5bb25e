"""Sums, spreads and ranks over the last ``window`` values, each computed afresh.

A running total (pandas, TA-Lib's STDDEV, BBANDS and CORREL) carries its rounding errors along and
cancels badly on raw prices, so that a value depends on where the array began. Here every window is
summed by itself in one order: a short array gives the same bits as a long one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ema_lookback",
    "rolling_rank",
    "rolling_slope",
    "rolling_std",
    "rolling_sum",
    "weighted_sum",
    "wilder_lookback",
]

Floats = NDArray[np.float64]

CHUNK = 8192
"""Rows at a time: what is computed of their windows stays in the processor's cache."""

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
    return weighted_sum(values, _ones(window))


def weighted_sum(values: Floats, weights: Floats) -> Floats:
    """(n,) sum of as many last values as weights, times those, the oldest first; NaN at the start."""
    result = np.empty(len(values))
    result[: len(weights) - 1] = np.nan
    if len(values) >= len(weights):
        # One dot product a window: of one order, so of the same bits wherever the array begins.
        result[len(weights) - 1 :] = np.correlate(values, weights)
    return result


@cache
def _ones(window: int) -> Floats:
    return np.ones(window)


def rolling_std(values: Floats, window: int) -> Floats:
    """(n,) population standard deviation of the last ``window`` values, in two passes; NaN at the start."""

    def spread(windows: Floats) -> Floats:
        apart = windows - _total(windows) / window
        apart *= apart
        deviation: Floats = np.sqrt(_total(apart) / window)
        return deviation

    return _of_windows(spread, values, window)


def rolling_slope(values: Floats, window: int) -> Floats:
    """(n,) slope of the least-squares line through the last ``window`` values, a step; NaN at the start."""
    return weighted_sum(values, _slope_weights(window))


@cache
def _slope_weights(window: int) -> Floats:
    place = np.arange(window) - (window - 1) / 2
    weights: Floats = place / (place**2).sum()
    return weights


def rolling_rank(values: Floats, window: int) -> Floats:
    """(n,) share of the last ``window`` values, the newest included, that are strictly below the newest.

    Exact: a count divided by ``window``, so from 0 to ``1 - 1 / window``, without interpolation; equal
    values count as not below. NaN where the window is incomplete or holds a NaN.
    """

    def below(windows: Floats) -> Floats:
        count: Floats = np.add.reduce(windows < windows[-1], axis=0, dtype=np.uint16) / window
        return count

    rank = _of_windows(below, values, window)
    for hole in np.flatnonzero(np.isnan(values)).tolist():
        rank[hole : hole + window] = np.nan
    return rank


def _of_windows(measure: Callable[[Floats], Floats], values: Floats, window: int) -> Floats:
    """(n,) ``measure`` of windows (window, rows), the oldest value first; NaN while they are incomplete."""
    values = np.ascontiguousarray(values)
    result = np.empty(len(values))
    result[: window - 1].fill(np.nan)
    for start in range(window - 1, len(values), CHUNK):
        stop = min(start + CHUNK, len(values))
        # sliding_window_view takes thirty times as long to make the same view.
        shape, offset = (window, stop - start), (start - window + 1) * values.itemsize
        windows = np.ndarray(shape, values.dtype, values, offset, values.strides * 2)
        result[start:stop] = measure(windows)
    return result


def _total(terms: Floats) -> Floats:
    """(rows,) sum of (window, rows) down each column, one value after the other."""
    if terms.shape[1] == 1:
        # A column alone is contiguous, and numpy would add it up in pairs: in another order.
        total: Floats = np.add.accumulate(terms)[-1]
    else:
        total = np.add.reduce(terms, axis=0)
    return total
