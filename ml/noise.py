"""Noise filters: bad ticks, bars without trade. Each says what it dropped and why.

Point in time: a candle is judged by itself and by those before it, so that a live candle is judged as
it was in training. The price of that: a bad tick that looks like a crash when it comes stays in. The
limits are set so that the real crashes of 2017 to 2024 (wicks up to 45 median ranges) stay in as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ml.candles import Candles, to_datetime

__all__ = ["LOOKBACK", "REASONS", "Cleaned", "Dropped", "clean"]

LOOKBACK = 100
"""Earlier candles that decide whether a candle is noise."""

JUMP_WINDOW = 5
MAX_JUMP = 3.0
MAX_WICK = 50.0

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
    masks = dict(zip(REASONS, _noise(candles), strict=True))
    reason = np.full(len(candles), -1)
    for index, mask in reversed(list(enumerate(masks.values()))):
        reason[mask] = index
    names = list(REASONS)
    noisy = np.flatnonzero(reason >= 0)
    return Cleaned(
        candles=candles.take(reason < 0) if len(noisy) else candles,
        dropped=tuple(Dropped(to_datetime(candles.open_time[row]), names[reason[row]]) for row in noisy),
        counts={name: int((reason == index).sum()) for index, name in enumerate(names)},
    )


def _noise(candles: Candles) -> list[NDArray[np.bool_]]:
    """(n,) mask of each reason, in the order of ``REASONS``. A comparison with a missing median is False."""
    top = np.maximum(candles.open, candles.close)
    bottom = np.minimum(candles.open, candles.close)
    usual_close = _median_before(candles.close, JUMP_WINDOW)
    usual_range = _median_before(candles.high - candles.low, LOOKBACK)
    wick = np.maximum(candles.high - top, bottom - candles.low)
    return [
        (top > candles.high) | (bottom < candles.low),
        candles.volume == 0,
        candles.high == candles.low,
        (candles.close > MAX_JUMP * usual_close) | (candles.close * MAX_JUMP < usual_close),
        # Where nothing usually moves (median 0) any wick would be infinitely long.
        (wick > MAX_WICK * usual_range) & (usual_range > 0),
    ]


def _median_before(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """(n,) median of the ``window`` values before each, itself left out; NaN for the first ``window``."""
    return pd.Series(values).rolling(window).median().shift(1).to_numpy()
