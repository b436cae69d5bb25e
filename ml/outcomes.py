"""What became of signals that were answered live: the triple barrier, once all of it has passed.

As in training, outcomes are walked on the candles as traded, before the noise filter; unlike there, the
entry is the price that the answer was given at, even where its candle was corrected afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

import numpy as np

from ml.candles import Candles, to_datetime, to_datetime64
from ml.config import LabelConfig
from ml.keys import interval_duration
from ml.labels import round_trip_cost_atr, triple_barrier

__all__ = ["GIVEN_UP_AFTER", "OpenSignal", "Resolution", "WhyUnresolved", "live_until", "resolve"]

GIVEN_UP_AFTER: Final = timedelta(days=30)
"""Candles that are not in so long after a horizon's end are not waited for any more."""

WhyUnresolved = Literal["gap", "no_atr", "no_candle", "other_market"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSignal:
    """A signal as its answer recorded it."""

    signal_time: datetime
    """Close of its candle."""
    direction: int
    """+1 long, -1 short."""
    entry_price: float | None
    """Close of its candle as the answer knew it; None, and the stored one is taken."""
    atr: float | None
    natr: float | None = None
    """ATR / close by the features of the answer, which stands in for ``atr`` where a caller brought only
    features; NaN is the same as None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What is known of a signal, and will not change."""

    label: int | None
    """1 profit-take first, 0 stop or vertical barrier first."""
    label_end: datetime | None
    net_return_atr: float | None
    """After fees and slippage."""
    unresolved: WhyUnresolved | None
    """Why there is no label: the horizon holds a gap; no ATR was recorded; the signal's candle is not stored,
    or nothing up to the horizon's end is ``GIVEN_UP_AFTER``; or the entry lies more than an ATR from the
    stored close, so the answer was about candles of another market."""
    stored_close: float | None
    """Close of the signal's candle as it is stored now, where that is not the entry."""
    derived_atr: float | None = None
    """``natr`` * the stored close, where the barriers were that far away for want of a recorded ATR."""


def live_until(signal_time: datetime, interval: str) -> datetime:
    """The last moment at which an answer to a signal counts as given live: one candle after its close.

    A later one may have seen part of the outcome. Which answers those are must not hang on the outcome:
    "before it was known" would keep late answers to slow outcomes only, and slow ones are the misses.
    """
    return signal_time + interval_duration(interval)


def resolve(
    candles: Candles, signal: OpenSignal, config: LabelConfig, *, now: datetime, stored: bool = True
) -> Resolution | None:
    """Label a signal by the candles that came after it; None while it is still open.

    It is open until every candle of its horizon could be in, even if it touched a barrier before: the
    outcomes known first would be those of quick moves. A candle of the horizon that is missing once a later
    one is in counts as missing, as in training.

    Args:
        candles: of the signal's symbol and interval as known at ``now``, its own and those after it.
        signal: whose horizon is past.
        config: barriers and costs of the model that answered.
        now: aware; no earlier than any candle's close.
        stored: the series is stored at all; where it is not, nothing is waited for.
    """
    if not (_is_range(signal.atr) or (signal.atr is None and _is_range(signal.natr))):
        return _without_label("no_atr")
    close_time = candles.close_time
    end = signal.signal_time + config.horizon_bars * interval_duration(candles.interval)
    if len(candles) == 0 or close_time[-1] < to_datetime64(end):
        return None if stored and now <= end + GIVEN_UP_AFTER else _without_label("no_candle")
    row = int(np.searchsorted(close_time, to_datetime64(signal.signal_time)))
    if close_time[row] != to_datetime64(signal.signal_time):
        return _without_label("no_candle")
    return _walk(candles.slice(row, row + config.horizon_bars + 1), signal, config)


def _is_range(value: float | None) -> bool:
    return value is not None and 0 < value < math.inf


def _walk(candles: Candles, signal: OpenSignal, config: LabelConfig) -> Resolution:
    """The outcome on candles from the signal's own to the one that ends its horizon, or the next after it."""
    stored = float(candles.close[0])
    derived_atr = None if signal.natr is None or signal.atr is not None else signal.natr * stored
    atr = signal.atr if derived_atr is None else derived_atr
    assert atr is not None
    entry = stored if signal.entry_price is None else signal.entry_price
    stored_close = None if stored == entry else stored
    if not abs(entry - stored) <= atr:
        return _without_label("other_market", stored_close=stored_close)
    close = candles.close.copy()
    close[0] = entry
    outcome = triple_barrier(
        replace(candles, close=close),
        np.zeros(1, np.int64),
        np.array([signal.direction], np.int8),
        np.array([atr]),
        config,
    )
    if np.isnan(outcome.label[0]):
        return _without_label("gap", stored_close=stored_close)
    return Resolution(
        label=int(outcome.label[0]),
        label_end=to_datetime(outcome.label_end[0]),
        net_return_atr=float(outcome.gross_return_atr[0]) - round_trip_cost_atr(entry, atr, config),
        unresolved=None,
        stored_close=stored_close,
        derived_atr=derived_atr,
    )


def _without_label(why: WhyUnresolved, *, stored_close: float | None = None) -> Resolution:
    return Resolution(
        label=None, label_end=None, net_return_atr=None, unresolved=why, stored_close=stored_close
    )
