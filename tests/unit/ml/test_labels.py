"""Triple barriers against hand-made cases and an obvious loop over real candles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import talib

from ml.candles import Candles
from ml.config import LabelConfig
from ml.labels import Labels, recency_weight, round_trip_cost_atr, triple_barrier, uniqueness
from ml.patterns import detect
from tests.real_candles import real_candles

pytestmark = pytest.mark.training

START = np.datetime64("2019-01-01T00:00", "us")
HOUR = np.timedelta64(1, "h")
CONFIG = LabelConfig(profit_take_atr=1, stop_loss_atr=2, horizon_bars=4, max_gap_bars=1)

Bar = tuple[float, float, float, float]
STILL: Bar = (100, 100.5, 99.5, 100)


def signal_then(*bars: Bar, hours: list[int] | None = None) -> Candles:
    """A candle that closes at 100 (the signal, row 0), then the given (open, high, low, close)."""
    open_, high, low, close = np.array([STILL, *bars], dtype=float).T
    opened = np.arange(len(close)) if hours is None else np.array([0, *hours])
    return Candles("1h", START + opened * HOUR, open_, high, low, close, np.ones(len(close)))


@dataclass(frozen=True)
class Outcome:
    label: float
    hours: float
    move: float


def outcome(candles: Candles, direction: int = 1, atr: float = 1.0, config: LabelConfig = CONFIG) -> Outcome:
    """What became of the signal at row 0; ``hours`` from its close to the label's end."""
    found = triple_barrier(candles, np.array([0]), np.array([direction], np.int8), np.array([atr]), config)
    hours = (found.label_end[0] - candles.close_time[0]) / HOUR
    return Outcome(float(found.label[0]), float(hours), float(found.gross_return_atr[0]))


def unknown(found: Outcome) -> bool:
    return bool(np.isnan([found.label, found.hours, found.move]).all())


RISE: Bar = (100, 101, 99.5, 100.8)
FALL: Bar = (100, 100.5, 98, 99)


@pytest.mark.parametrize(
    ("bars", "direction", "expected"),
    [
        ([STILL, RISE, FALL, STILL], 1, Outcome(1, 2, 1)),
        ([STILL, STILL, FALL, RISE], 1, Outcome(0, 3, -2)),
        ([(100, 102, 99.5, 100), STILL, STILL, STILL], -1, Outcome(0, 1, -2)),
        ([(100, 100.5, 99, 100), STILL, STILL, STILL], -1, Outcome(1, 1, 1)),
    ],
)
def test_the_barrier_touched_first_decides(bars: list[Bar], direction: int, expected: Outcome) -> None:
    assert outcome(signal_then(*bars), direction) == expected


@pytest.mark.parametrize("direction", [1, -1])
def test_a_candle_that_touches_both_counts_as_the_stop(direction: int) -> None:
    both: Bar = (100, 102, 98, 100)
    assert outcome(signal_then(both, STILL, STILL, STILL), direction) == Outcome(0, 1, -2)


def test_a_high_just_under_the_barrier_does_not_touch_it() -> None:
    near: Bar = (100, 100.999, 98.001, 100.25)
    assert outcome(signal_then(near, near, near, near)) == Outcome(0, 4, 0.25)


def test_the_vertical_barrier_exits_at_the_last_close_signed_by_direction() -> None:
    last: Bar = (100, 100.5, 99.5, 99.75)
    assert outcome(signal_then(STILL, STILL, STILL, last), -1) == Outcome(0, 4, 0.25)
    assert outcome(signal_then(STILL, STILL, STILL, last), 1) == Outcome(0, 4, -0.25)


def test_barriers_are_multiples_of_atr() -> None:
    assert outcome(signal_then(STILL, (100, 103, 97, 100), STILL, STILL), atr=3) == Outcome(1, 2, 1)


def test_the_signals_own_candle_touches_nothing() -> None:
    candles = signal_then(STILL, STILL, STILL, STILL)
    candles.high[0], candles.low[0] = 200, 50
    assert outcome(candles) == Outcome(0, 4, 0)


def test_a_candle_that_opens_beyond_the_stop_exits_at_its_open() -> None:
    assert outcome(signal_then((97, 97.5, 96, 97), STILL, STILL, STILL)) == Outcome(0, 1, -3)
    assert outcome(signal_then((103, 104, 102, 103), STILL, STILL, STILL), -1) == Outcome(0, 1, -3)


def test_a_candle_that_opens_beyond_the_profit_take_exits_at_the_barrier() -> None:
    assert outcome(signal_then((102, 103, 101.5, 102), STILL, STILL, STILL)) == Outcome(1, 1, 1)


def test_the_horizon_is_time_so_that_a_candle_after_it_cannot_touch() -> None:
    # Hours 1, 2 and 4 of the horizon are there, 3 is missing; the rise opens after the horizon.
    candles = signal_then(STILL, STILL, (100, 100.5, 99.5, 100.25), RISE, hours=[1, 2, 4, 5])
    assert outcome(candles) == Outcome(0, 4, 0.25)


def test_more_missing_candles_than_the_limit_leave_the_label_unknown() -> None:
    candles = signal_then(RISE, STILL, STILL, hours=[1, 4, 5])
    assert unknown(outcome(candles))
    allowed = CONFIG.model_copy(update={"max_gap_bars": 2})
    assert outcome(candles, config=allowed) == Outcome(1, 1, 1)


def test_a_horizon_without_a_candle_leaves_the_label_unknown() -> None:
    candles = signal_then(STILL, RISE, hours=[9, 10])
    assert unknown(outcome(candles, config=CONFIG.model_copy(update={"max_gap_bars": 4})))


def test_a_horizon_past_the_last_candle_is_unknown_even_if_a_barrier_was_touched() -> None:
    assert unknown(outcome(signal_then(RISE, STILL, STILL)))
    assert outcome(signal_then(RISE, STILL, STILL, STILL)) == Outcome(1, 1, 1)


@pytest.mark.parametrize("atr", [0.0, np.nan])
def test_without_a_range_to_measure_by_the_label_is_unknown(atr: float) -> None:
    assert unknown(outcome(signal_then(RISE, STILL, STILL, STILL), atr=atr))


def obvious_loop(
    candles: Candles, at: int, side: int, atr: float, config: LabelConfig
) -> tuple[float, object, float]:
    """(label, label_end, move) of one signal, read from the rules line by line."""
    entry, now = candles.close[at], candles.close_time[at]
    end = now + config.horizon_bars * HOUR
    inside = [
        row
        for row in range(at + 1, at + 1 + config.horizon_bars)
        if row < len(candles) and candles.close_time[row] <= end
    ]
    unknown = (np.nan, None, np.nan)
    if end > candles.close_time[-1] or not inside or config.horizon_bars - len(inside) > config.max_gap_bars:
        return unknown
    for row in inside:
        worst = candles.low[row] if side > 0 else candles.high[row]
        best = candles.high[row] if side > 0 else candles.low[row]
        if side * worst <= side * (entry - side * config.stop_loss_atr * atr):
            return (
                0.0,
                candles.close_time[row],
                min(-config.stop_loss_atr, side * (candles.open[row] - entry) / atr),
            )
        if side * best >= side * (entry + side * config.profit_take_atr * atr):
            return 1.0, candles.close_time[row], config.profit_take_atr
    return 0.0, end, side * (candles.close[inside[-1]] - entry) / atr


@pytest.fixture(scope="module")
def real() -> tuple[Candles, np.ndarray, np.ndarray, np.ndarray, Labels]:
    # Holes of every size, so that gaps matter; the end cut, so that horizons run past it.
    keep = np.random.default_rng(5).random(6000) > 0.04
    candles = real_candles().slice(0, 6000).take(keep)
    found = detect(candles)
    atr = talib.ATR(candles.high, candles.low, candles.close, 14)[found.at]
    return (
        candles,
        found.at,
        found.direction,
        atr,
        triple_barrier(candles, found.at, found.direction, atr, LabelConfig()),
    )


def test_real_labels_are_those_of_the_obvious_loop(
    real: tuple[Candles, np.ndarray, np.ndarray, np.ndarray, Labels],
) -> None:
    candles, at, direction, atr, labels = real
    for i in range(len(at)):
        if np.isnan(atr[i]):
            assert np.isnan(labels.label[i])
            continue
        label, end, move = obvious_loop(candles, int(at[i]), int(direction[i]), float(atr[i]), LabelConfig())
        np.testing.assert_equal(labels.label[i], label)
        assert np.isnat(labels.label_end[i]) if end is None else labels.label_end[i] == end
        np.testing.assert_allclose(labels.gross_return_atr[i], move, rtol=1e-9, atol=1e-12)
    assert 0.4 < np.nanmean(labels.label) < 0.7
    assert np.isnan(labels.label).any()


def test_a_real_label_ends_within_its_horizon_and_never_before_its_signal(
    real: tuple[Candles, np.ndarray, np.ndarray, np.ndarray, Labels],
) -> None:
    candles, at, _, _, labels = real
    known = ~np.isnan(labels.label)
    assert (np.isnat(labels.label_end) == ~known).all()
    wait = labels.label_end[known] - candles.close_time[at[known]]
    assert (wait > np.timedelta64(0)).all()
    assert (wait <= 12 * HOUR).all()


def test_real_uniqueness_is_that_of_the_obvious_loop(
    real: tuple[Candles, np.ndarray, np.ndarray, np.ndarray, Labels],
) -> None:
    candles, at, _, _, labels = real
    spans = [
        [row for row in range(start + 1, min(start + 13, len(candles))) if candles.close_time[row] <= end]
        for start, end in zip(at, labels.label_end, strict=True)
    ]
    concurrency = np.zeros(len(candles))
    for span in spans:
        concurrency[span] += 1
    expected = np.array([(1 / concurrency[span]).mean() if span else np.nan for span in spans])
    np.testing.assert_allclose(uniqueness(candles, at, labels.label_end), expected, rtol=1e-9)


def test_uniqueness_of_overlapping_labels_by_hand() -> None:
    candles = signal_then(*[STILL] * 6)
    at = np.array([0, 0, 2, 3])
    end = candles.close_time[[2, 4, 4, 3]].copy()
    end[3] = np.datetime64("NaT")
    # Rows 1 and 2 hold the first two labels, 3 and 4 the last two known; the unknown one counts for nothing.
    np.testing.assert_allclose(uniqueness(candles, at, end), [0.5, 0.5, 0.5, np.nan])


def test_costs_are_paid_at_entry_and_exit_and_measured_in_atr() -> None:
    # 10 + 5 basis points a side of 200 are 0.3, twice is 0.6: 0.2 of an ATR of 3, 0.1 of one of 6.
    config = LabelConfig(fee_bps=10, slippage_bps=5)
    assert round_trip_cost_atr(200.0, 3.0, config) == pytest.approx(0.2)
    entry, atr = np.array([200.0, 200.0, 200.0]), np.array([3.0, 6.0, np.nan])
    np.testing.assert_allclose(round_trip_cost_atr(entry, atr, config), [0.2, 0.1, np.nan])


def test_recency_halves_with_every_half_life() -> None:
    times = START + np.array([30, 20, 0]) * np.timedelta64(1, "D")
    np.testing.assert_allclose(recency_weight(times, half_life_days=10), [1, 0.5, 0.125])
    assert recency_weight(times[:0], half_life_days=10).tolist() == []


def test_no_signals_have_no_labels() -> None:
    none = np.empty(0, np.int64)
    for candles in (real_candles(), Candles.empty("1h")):
        found = triple_barrier(candles, none, none.astype(np.int8), np.empty(0), CONFIG)
        assert len(found.label) == len(uniqueness(candles, none, found.label_end)) == 0
