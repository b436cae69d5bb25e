"""Sums, spreads and ranks over the last ``window`` values, each computed afresh.

A running total (pandas, TA-Lib's STDDEV, BBANDS and CORREL) carries its rounding errors along and
cancels badly on raw prices, so that a value depends on where the array began. Here every window is
summed by itself in one order: a short array gives the same bits as a long one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ema_lookback",
    "rolling_mean_std",
    "rolling_rank",
    "rolling_slope",
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


def rolling_sum(values: Floats, window: int, last: int | None = None) -> Floats:
    """(n,) sum of the last ``window`` values, NaN for the first ``window - 1``; or its ``last`` last rows."""
    rows = len(values) if last is None else last
    if rows < len(values):
        values = values[max(len(values) - rows - window + 1, 0) :]
    if rows == 1 and len(values) == window:
        # What the rest does, without its preparations: they take a live row three times as long.
        alone: Floats = np.add.accumulate(values)[-1:]
        return alone
    result = np.empty(len(values))
    result[: window - 1] = np.nan
    for at, windows in _windows(values, window):
        result[at] = _total(windows)
    return result[len(values) - rows :]


def weighted_sum(values: Floats, weights: Floats, last: int | None = None) -> Floats:
    """``rolling_sum`` of as many last values as weights, times those, the oldest first."""
    rows = len(values) if last is None else last
    first = len(values) - rows - len(weights) + 1
    if first >= 0:
        # A dot product for each window by itself: of one order as well.
        result: Floats = np.correlate(values[first:], weights)
    else:
        result = np.full(rows, np.nan)
        if len(values) >= len(weights):
            result[-first:] = np.correlate(values, weights)
    return result


def rolling_mean_std(values: Floats, window: int) -> tuple[Floats, Floats]:
    """(n,) mean and population standard deviation of the last ``window`` values; NaN at the start."""
    mean, std = np.empty((2, len(values)))
    mean[: window - 1] = std[: window - 1] = np.nan
    for at, windows in _windows(values, window):
        mean[at] = middle = _total(windows) / window
        apart = windows - middle
        apart *= apart
        std[at] = np.sqrt(_total(apart) / window)
    return mean, std


def rolling_slope(values: Floats, window: int, last: int | None = None) -> Floats:
    """(n,) slope of the least-squares line through the last ``window`` values, a step; NaN at the start."""
    return weighted_sum(values, _slope_weights(window), last)


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
    rank = np.empty(len(values))
    rank[: window - 1] = np.nan
    for at, windows in _windows(values, window):
        rank[at] = np.add.reduce(windows < windows[-1], axis=0, dtype=np.uint16) / window
    for hole in np.isnan(values).nonzero()[0].tolist():
        rank[hole : hole + window] = np.nan
    return rank


def _windows(values: Floats, window: int) -> Iterator[tuple[slice, Floats]]:
    """Rows that have a whole window, ``CHUNK`` at a time, and the windows: (window, rows), oldest first."""
    values = np.ascontiguousarray(values)
    for start in range(window - 1, len(values), CHUNK):
        stop = min(start + CHUNK, len(values))
        # sliding_window_view takes thirty times as long to make the same view.
        shape, offset = (window, stop - start), (start - window + 1) * values.itemsize
        yield slice(start, stop), np.ndarray(shape, values.dtype, values, offset, values.strides * 2)


def _total(terms: Floats) -> Floats:
    """(rows,) sum of (window, rows) down each column, one value after the other."""
    if terms.shape[1] == 1:
        # A column alone is contiguous, and numpy would add it up in pairs: in another order.
        total: Floats = np.add.accumulate(terms)[-1]
    else:
        total = np.add.reduce(terms, axis=0)
    return total
