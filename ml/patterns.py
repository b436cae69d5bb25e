"""Candlestick patterns as signals: all of TA-Lib's, one signal per candle and direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import talib
from numpy.typing import NDArray

from ml.candles import Candles
from ml.errors import InputRejected
from ml.indicators import ta

__all__ = [
    "PATTERN_NAMES",
    "PATTERN_WINDOW",
    "FoundPatterns",
    "detect",
    "newest_patterns",
    "pattern_mask",
    "pattern_names",
]

PATTERN_NAMES: tuple[str, ...] = tuple(sorted(name for name in talib.__all__ if name.startswith("CDL")))
"""All 61. A pattern's bit in a mask is its index here."""

FUNCTIONS = tuple(getattr(ta, name) for name in PATTERN_NAMES)
BITS = np.uint64(1) << np.arange(len(PATTERN_NAMES), dtype=np.uint64)

PATTERN_WINDOW = 32
"""Candles that are enough to find the last one's patterns; TA-Lib looks back on 14 at most."""

TICKS_PER_UNIT = 1e8
"""Exchanges quote at most 8 decimals, so prices become whole numbers, which doubles add exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundPatterns:
    """Signals in candle order, short before long. Every array has shape (s,)."""

    at: NDArray[np.int64]
    """Row of the candle that completed the patterns."""
    direction: NDArray[np.int8]
    """+1 long, -1 short."""
    patterns: NDArray[np.uint64]
    """Bit i: pattern i of ``PATTERN_NAMES``; never 0."""

    def __len__(self) -> int:
        return len(self.at)


def detect(candles: Candles) -> FoundPatterns:
    """Every pattern of every candle; the signal at row t uses candles up to t.

    Prices are read as whole ticks of 1e-8: TA-Lib compares a candle's body with a running average, and on
    decimal fractions the rounding of that average, and so a tie, depends on where the array began.
    """
    ticks = np.rint(np.array([candles.open, candles.high, candles.low, candles.close]) * TICKS_PER_UNIT)
    n = len(candles)
    # Column 0 short, column 1 long.
    masks = np.zeros((n, 2), dtype=np.uint64)
    if n:
        open_, high, low, close = ticks
        strength = np.concatenate([function(open_, high, low, close) for function in FUNCTIONS])
        # Of bools: nonzero of integers takes six times as long.
        found = strength.astype(bool).nonzero()[0]
        bit, row = np.divmod(found, n)
        np.bitwise_or.at(masks, (row, (strength[found] > 0).view(np.int8)), BITS[bit])
    at, side = np.nonzero(masks)
    return FoundPatterns(at=at, direction=(2 * side - 1).astype(np.int8), patterns=masks[at, side])


def newest_patterns(candles: Candles) -> dict[int, int]:
    """Direction -> mask of the last candle's patterns, short before long; a side without any is not there."""
    tail = candles.slice(-PATTERN_WINDOW)
    found = detect(tail)
    newest = found.at == len(tail) - 1
    return dict(zip(found.direction[newest].tolist(), found.patterns[newest].tolist(), strict=True))


@lru_cache(maxsize=65_536)
def pattern_names(mask: int) -> tuple[str, ...]:
    """Names of a mask's patterns, in the order of ``PATTERN_NAMES``."""
    return tuple(name for bit, name in enumerate(PATTERN_NAMES) if mask >> bit & 1)


def pattern_mask(names: Iterable[str]) -> int:
    """The mask of a list of names.

    Raises:
        InputRejected: a name is not of ``PATTERN_NAMES``.
    """
    mask = 0
    for name in names:
        if name not in PATTERN_NAMES:
            raise InputRejected("pattern", name, "one of TA-Lib's patterns, such as CDLENGULFING")
        mask |= 1 << PATTERN_NAMES.index(name)
    return mask
