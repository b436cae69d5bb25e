"""The four market regimes, point in time: a candle's regime uses candles up to it, and never changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml.candles import Candles
from ml.indicators import ta
from ml.keys import REGIMES
from ml.rolling import rolling_mean_std, rolling_rank, wilder_lookback

__all__ = ["LOOKBACK", "RegimeMeasures", "classify", "classify_measures", "measure"]

Floats = NDArray[np.float64]

TRENDING, SIDEWAYS, VOLATILE, CONSOLIDATION = (
    np.int8(REGIMES.index(name)) for name in ("trending", "sideways", "volatile", "consolidation")
)

RANK_WINDOW = 500
VOLATILE_RANK = 0.8
TRENDING_ADX = 25.0
CONSOLIDATION_RANK = 0.25
BOLLINGER_WINDOW = 20
PERIOD = 14
"""Of ATR and ADX (Wilder, *New Concepts in Technical Trading Systems*, 1978)."""
ATR_LOOKBACK = PERIOD + wilder_lookback(PERIOD)
"""Earlier candles that decide ATR, and so everything measured in it."""
ADX_LOOKBACK = ATR_LOOKBACK + 2 * PERIOD + 40
"""ADX smooths what ATR has smoothed, so that it forgets later."""
LOOKBACK = RANK_WINDOW + wilder_lookback(PERIOD)
"""Earlier candles that decide a regime; any array that holds them tells the same one."""


class RegimeMeasures(NamedTuple):
    """What regimes are told by. Every array has shape (n,); NaN while the history is too short."""

    atr: Floats
    """ATR(14), price units."""
    middle: Floats
    """Of the Bollinger bands: mean of the last 20 closes."""
    adx: Floats
    """ADX(14), 0..100."""
    width: Floats
    """Bollinger(20, 2) width: upper minus lower band, over the middle one."""
    atr_rank: Floats
    """Rank of ATR/close among its last 500, in [0, 0.998]."""
    width_rank: Floats
    """Rank of the width among its last 500, in [0, 0.998]."""


def measure(candles: Candles, last: int | None = None) -> RegimeMeasures:
    """The measures of every candle, or of the ``last`` last; they are features as well, and made once."""
    n = len(candles)
    rows = n if last is None else min(last, n)
    ranked = min(rows + RANK_WINDOW - 1, n)
    high, low, close = candles.high, candles.low, candles.close
    atr = ta.ATR(high, low, close, PERIOD)[n - ranked :]
    banded = close[max(n - ranked - BOLLINGER_WINDOW + 1, 0) :]
    middle, std = rolling_mean_std(banded, BOLLINGER_WINDOW)
    width = (4 * std / middle)[len(banded) - ranked :]
    smoothed = max(n - rows - ADX_LOOKBACK, 0)
    adx = ta.ADX(high[smoothed:], low[smoothed:], close[smoothed:], PERIOD)
    asked = slice(ranked - rows, None)
    return RegimeMeasures(
        atr=atr[asked],
        adx=adx[len(adx) - rows :],
        middle=middle[len(middle) - rows :],
        width=width[asked],
        atr_rank=rolling_rank(atr / close[n - ranked :], RANK_WINDOW)[asked],
        width_rank=rolling_rank(width, RANK_WINDOW)[asked],
    )


def classify_measures(adx: Floats, atr_rank: Floats, width_rank: Floats) -> NDArray[np.int8]:
    """(n,) int8 index into ``REGIMES``, the first that fits; -1 where a measure is NaN.

    A rank is the share of the last 500 values, the newest included, that are strictly below the newest:

    1. volatile: ATR/close over the 0.8 quantile of its last 500: ``0.8 <= atr_rank`` (400 or more below it);
    2. trending: ``25 < adx``;
    3. consolidation: Bollinger width under the 0.25 quantile of its last 500: ``width_rank < 0.25``
       (fewer than 125 below it);
    4. sideways: the rest.
    """
    regime = np.full(len(adx), SIDEWAYS)
    regime[width_rank < CONSOLIDATION_RANK] = CONSOLIDATION
    regime[adx > TRENDING_ADX] = TRENDING
    regime[atr_rank >= VOLATILE_RANK] = VOLATILE
    regime[np.isnan(adx + atr_rank + width_rank)] = -1
    return regime


def classify(candles: Candles) -> NDArray[np.int8]:
    """(n,) int8 regime of each candle by ``classify_measures``; -1 for the first ``LOOKBACK`` candles."""
    measures = measure(candles)
    regime = classify_measures(measures.adx, measures.atr_rank, measures.width_rank)
    regime[:LOOKBACK] = -1
    return regime
