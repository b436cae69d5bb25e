"""The four market regimes, point in time: a candle's regime uses candles up to it, and never changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import talib
from numpy.typing import NDArray

from ml.candles import Candles
from ml.keys import REGIMES
from ml.rolling import rolling_rank, rolling_std, rolling_sum, wilder_lookback

__all__ = ["LOOKBACK", "RegimeMeasures", "classify", "classify_measures", "measure"]

Floats = NDArray[np.float64]

RANK_WINDOW = 500
VOLATILE_RANK = 0.8
TRENDING_ADX = 25.0
CONSOLIDATION_RANK = 0.25
BOLLINGER_WINDOW = 20
PERIOD = 14
"""Of ATR and ADX (Wilder, *New Concepts in Technical Trading Systems*, 1978)."""
LOOKBACK = RANK_WINDOW + wilder_lookback(PERIOD)
"""Earlier candles that decide a regime; any array that holds them tells the same one."""


@dataclass(frozen=True, slots=True)
class RegimeMeasures:
    """What regimes are told by. Every array has shape (n,); NaN while the history is too short."""

    atr: Floats
    """ATR(14), price units."""
    adx: Floats
    """ADX(14), 0..100."""
    width: Floats
    """Bollinger(20, 2) width: upper minus lower band, over the middle one."""
    atr_rank: Floats
    """Rank of ATR/close among its last 500, in [0, 0.998]."""
    width_rank: Floats
    """Rank of the width among its last 500, in [0, 0.998]."""


def measure(candles: Candles) -> RegimeMeasures:
    """Compute the measures of every candle; they are features as well, so nothing is computed twice."""
    high, low, close = candles.high, candles.low, candles.close
    atr = talib.ATR(high, low, close, PERIOD)
    middle = rolling_sum(close, BOLLINGER_WINDOW) / BOLLINGER_WINDOW
    width = 4 * rolling_std(close, BOLLINGER_WINDOW) / middle
    return RegimeMeasures(
        atr=atr,
        adx=talib.ADX(high, low, close, PERIOD),
        width=width,
        atr_rank=rolling_rank(atr / close, RANK_WINDOW),
        width_rank=rolling_rank(width, RANK_WINDOW),
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
    code = {name: np.int8(index) for index, name in enumerate(REGIMES)}
    regime = np.full(len(adx), code["sideways"])
    regime[width_rank < CONSOLIDATION_RANK] = code["consolidation"]
    regime[adx > TRENDING_ADX] = code["trending"]
    regime[atr_rank >= VOLATILE_RANK] = code["volatile"]
    regime[np.isnan(adx) | np.isnan(atr_rank) | np.isnan(width_rank)] = -1
    return regime


def classify(candles: Candles) -> NDArray[np.int8]:
    """(n,) int8 regime of each candle by ``classify_measures``; -1 for the first ``LOOKBACK`` candles."""
    measures = measure(candles)
    regime = classify_measures(measures.adx, measures.atr_rank, measures.width_rank)
    regime[:LOOKBACK] = -1
    return regime
