"""The triple barrier: did a signal reach its profit-take before its stop or the vertical barrier?

López de Prado, *Advances in Financial Machine Learning*, 2018: barriers and meta-labels in ch. 3,
concurrency and uniqueness in ch. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ml.candles import Candles
from ml.config import LabelConfig

__all__ = ["Labels", "recency_weight", "round_trip_cost_atr", "triple_barrier", "uniqueness"]

Floats = NDArray[np.float64]
OneOrMany = TypeVar("OneOrMany", float, Floats)

BPS = 1e-4
SIDES = 2
"""Fees and slippage are paid at the entry and at the exit."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Outcomes of signals. Every array has shape (s,)."""

    label: Floats
    """1.0 profit-take first, 0.0 stop or vertical barrier first, NaN not known."""
    label_end: NDArray[np.datetime64]
    """Close of the candle that touched, or the vertical barrier; NaT where ``label`` is NaN."""
    gross_return_atr: Floats
    """Signed move from entry to exit in ATR, before costs; NaN where ``label`` is NaN."""


def triple_barrier(
    candles: Candles,
    at: NDArray[np.int64],
    direction: NDArray[np.int8],
    atr: Floats,
    config: LabelConfig,
) -> Labels:
    """Label signals by what the candles after them touch first.

    Entry is the close of the signal's candle; the next candle is the first that can touch. A high or a low
    at the barrier touches it; a candle that touches both counts as the stop. The vertical barrier is time:
    ``horizon_bars`` intervals after the entry. A profit-take exits at its barrier; a stop at its barrier, or
    at the open of a candle that opened beyond it; the vertical barrier at the last close before it.

    NaN where the horizon holds more than ``max_gap_bars`` missing candles or no candle at all, where ``atr``
    is NaN or 0, and where the horizon reaches past the last candle: even if a barrier was already touched,
    for to keep only the outcomes that came early would make the newest labels those of quick moves.

    Args:
        candles: of one symbol, sorted.
        at: (s,) rows of the signals' candles.
        direction: (s,) +1 long, -1 short.
        atr: (s,) average true range at the signal, price units.
    """
    entry = candles.close[at]
    horizon_end = candles.close_time[at] + config.horizon_bars * candles.step
    end_of_data = candles.close_time[-1] if len(candles) else np.datetime64("NaT")
    last = np.searchsorted(candles.close_time, horizon_end, side="right") - 1
    missing = config.horizon_bars - (last - at)
    known = (missing <= config.max_gap_bars) & (last > at) & (horizon_end <= end_of_data) & (atr > 0)

    unit = direction * np.where(known, atr, 1.0)
    stop = entry - config.stop_loss_atr * unit
    take = entry + config.profit_take_atr * unit
    touch, stopped = _first_touch(candles, at, last, stop, take)
    touched, taken = touch >= 0, (touch >= 0) & ~stopped
    opened = (candles.open[touch] - entry) / unit
    move = np.where(touched, np.minimum(opened, -config.stop_loss_atr), (candles.close[last] - entry) / unit)
    move[taken] = config.profit_take_atr
    label_end = np.where(touched, candles.close_time[touch], horizon_end)
    return Labels(
        label=np.where(known, taken.astype(np.float64), np.nan),
        label_end=np.where(known, label_end, np.datetime64("NaT")),
        gross_return_atr=np.where(known, move, np.nan),
    )


def _first_touch(
    candles: Candles, at: NDArray[np.int64], last: NDArray[np.int64], stop: Floats, take: Floats
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(s,) first row after ``at`` up to ``last`` that touches, else -1; (s,) whether it touches the stop."""
    long = take > stop
    floor, ceiling = np.minimum(stop, take), np.maximum(stop, take)
    touch = np.full(len(at), -1)
    was_stopped = np.zeros(len(at), dtype=bool)
    row = at + 1
    waiting = np.arange(len(at))
    while len(waiting := waiting[row[waiting] <= last[waiting]]):
        under = candles.low[row[waiting]] <= floor[waiting]
        over = candles.high[row[waiting]] >= ceiling[waiting]
        done = under | over
        touch[waiting[done]] = row[waiting[done]]
        was_stopped[waiting] = np.where(long[waiting], under, over)
        waiting = waiting[~done]
        row[waiting] += 1
    return touch, was_stopped


def round_trip_cost_atr(entry: OneOrMany, atr: OneOrMany, config: LabelConfig) -> OneOrMany:
    """Fees and slippage of a trade's both sides, in ATR; of one signal or of (s,). NaN where ``atr`` is.

    Args:
        entry: price of the entry; the exit's is taken to be the same.
        atr: average true range at the signal, price units, over 0.
        config: ``fee_bps`` and ``slippage_bps`` are read.
    """
    return SIDES * (config.fee_bps + config.slippage_bps) * BPS * entry / atr


def uniqueness(candles: Candles, at: NDArray[np.int64], label_end: NDArray[np.datetime64]) -> Floats:
    """(s,) average uniqueness of each label among the given ones of its symbol, in (0, 1].

    A label is open over the candles after its signal up to its end; a candle's concurrency is the number
    of labels open on it; a label's uniqueness is the mean of 1/concurrency over its candles. NaN where
    ``label_end`` is NaT, and such labels count for nothing.
    """
    unique = np.full(len(at), np.nan)
    known = ~np.isnat(label_end)
    first = at[known] + 1
    stop = np.searchsorted(candles.close_time, label_end[known], side="right")
    n = len(candles) + 1
    concurrency = np.cumsum(np.bincount(first, minlength=n) - np.bincount(stop, minlength=n))[:-1]
    share = np.concatenate([[0.0], np.cumsum(1.0 / np.maximum(concurrency, 1))])
    unique[known] = (share[stop] - share[first]) / (stop - first)
    return unique


def recency_weight(close_time: NDArray[np.datetime64], *, half_life_days: float) -> Floats:
    """(n,) weight in (0, 1]: 1 for the newest of the given times, half of it ``half_life_days`` earlier."""
    if len(close_time) == 0:
        return np.empty(0)
    age_days = (close_time.max() - close_time) / np.timedelta64(1, "D")
    weight: Floats = 0.5 ** (age_days / half_life_days)
    return weight
