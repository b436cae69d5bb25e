"""Noise filters: bad ticks, bars without trade. Each says what it dropped and why.

Point in time: a candle is judged by itself and by those before it, so that a live candle is judged as
it was in training. The price of that: a bad tick that looks like a crash when it comes stays in. The
limits are set so that the real crashes of 2017 to 2024 (wicks up to 45 median ranges) stay in as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ml.candles import Candles, to_datetime
from ml.indicators import ta

__all__ = ["LOOKBACK", "REASONS", "Cleaned", "Dropped", "clean"]

Floats = NDArray[np.float64]

LOOKBACK = 100
"""Earlier candles that decide whether a candle is noise."""

JUMP_WINDOW = 5
MAX_JUMP = 3.0
MAX_WICK = 50.0
CHUNK = 8192
"""Medians looked for at a time."""

REASONS = {
    "outside_range": "open or close is outside the candle's own low and high",
    "no_volume": "volume is 0: nothing was traded",
    "flat": "open, high, low and close are one price",
    "jump": f"close over {MAX_JUMP:g} times the median of the {JUMP_WINDOW} before, or under 1/{MAX_JUMP:g}",
    "wick": f"a wick over {MAX_WICK:g} times the median range of the {LOOKBACK} before",
}
"""Why a candle is dropped; the first that fits is the one named."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A candle that is not learned from."""

    open_time: datetime
    """Aware, UTC."""
    reason: str
    """A key of ``REASONS``."""


@dataclass(frozen=True, slots=True, eq=False)
class Cleaned:
    """What is left, and what was dropped, oldest first."""

    candles: Candles
    dropped: tuple[Dropped, ...]
    counts: dict[str, int]
    """Dropped candles by reason, every reason of ``REASONS`` named."""


def clean(candles: Candles) -> Cleaned:
    """Drop the candles that fit a reason of ``REASONS``; a dropped candle becomes a gap.

    The first candles are not judged by medians that they are too few for.
    """
    masks = _noise(candles)
    noise = np.logical_or.reduce(masks)
    noisy = np.flatnonzero(noise)
    names = tuple(REASONS)
    # The first reason that fits.
    reasons = [names[index] for index in masks[:, noisy].argmax(axis=0).tolist()]
    return Cleaned(
        candles=candles.take(~noise) if reasons else candles,
        dropped=tuple(
            Dropped(to_datetime(moment), reason)
            for moment, reason in zip(candles.open_time[noisy], reasons, strict=True)
        ),
        counts={name: reasons.count(name) for name in names},
    )


def _noise(candles: Candles) -> NDArray[np.bool_]:
    """(``len(REASONS)``, n) masks in their order; what has no median before it is not judged."""
    high, low, close = candles.high, candles.low, candles.close
    top, bottom = np.maximum(candles.open, close), np.minimum(candles.open, close)
    wick_length, spread = np.maximum(high - top, bottom - low), high - low
    masks = np.zeros((len(REASONS), len(candles)), dtype=bool)
    outside_range, no_volume, flat, jump, wick = masks
    np.logical_or(top > high, bottom < low, out=outside_range)
    np.equal(candles.volume, 0, out=no_volume)
    np.equal(high, low, out=flat)
    # A median lies between the lowest and the highest: what does not stand out from those does not from it.
    may_jump = close > MAX_JUMP * _before(ta.MIN, close, JUMP_WINDOW)
    may_jump |= close * MAX_JUMP < _before(ta.MAX, close, JUMP_WINDOW)
    for rows, usual in _medians_before(close, JUMP_WINDOW, may_jump):
        jump[rows] = (close[rows] > MAX_JUMP * usual) | (close[rows] * MAX_JUMP < usual)
    for rows, usual in _medians_before(
        spread, LOOKBACK, wick_length > MAX_WICK * _before(ta.MIN, spread, LOOKBACK)
    ):
        # Where nothing usually moves (median 0) any wick would be infinitely long.
        wick[rows] = (wick_length[rows] > MAX_WICK * usual) & (usual > 0)
    return masks


def _before(extreme: Callable[[Floats, int], Floats], values: Floats, window: int) -> Floats:
    """(n,) ``extreme`` of the ``window`` values before each; NaN for the first ``window``."""
    result = np.full(len(values), np.nan)
    result[1:] = extreme(values, window)[:-1]
    return result


def _medians_before(
    values: Floats, window: int, where: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Rows of a mask, ``CHUNK`` at a time, and the median of the ``window`` values before each."""
    found = np.flatnonzero(where)
    middle = [(window - 1) // 2, window // 2]
    for start in range(0, len(found), CHUNK):
        rows = found[start : start + CHUNK]
        before = np.partition(values[rows[:, None] + np.arange(-window, 0)], middle, axis=1)
        yield rows, before[:, middle].mean(axis=1)
