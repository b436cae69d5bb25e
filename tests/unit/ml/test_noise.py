"""The noise filter: what is dropped, why, and that real crashes stay."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from ml import noise
from ml.candles import Candles, to_datetime
from ml.noise import LOOKBACK, REASONS, Dropped, clean
from tests.real_candles import real_candles

pytestmark = pytest.mark.training

START = datetime(2019, 1, 1, tzinfo=UTC)


def quiet(n: int = 150) -> Candles:
    """n hours around 100, each with a range of 2 and a body of 1."""
    times = np.datetime64("2019-01-01", "us") + np.arange(n) * np.timedelta64(1, "h")
    full = np.full
    return Candles("1h", times, full(n, 99.5), full(n, 101.0), full(n, 99.0), full(n, 100.5), full(n, 3.0))


def wild(n: int = 3000) -> Candles:
    """Prices that leap now and then, and wicks of every length; only medians tell what is noise."""
    rng = np.random.default_rng(9)
    close = 100 * np.exp(rng.normal(0, 0.01, n) + 1.2 * (rng.random(n) < 0.02))
    wick = 1 + 0.01 * rng.exponential(1, (2, n)) * np.where(rng.random((2, n)) < 0.02, 80, 1)
    times = np.datetime64("2019-01-01", "us") + np.arange(n) * np.timedelta64(1, "h")
    return Candles("1h", times, close, close * wick[0], close / wick[1], close, np.ones(n))


def with_row(row: int, **values: float) -> Candles:
    candles = quiet()
    columns = {name: getattr(candles, name).copy() for name in values}
    for name, value in values.items():
        columns[name][row] = value
    return replace(candles, **columns)


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("outside_range", {"close": 101.5}),
        ("outside_range", {"open": 98.0}),
        ("no_volume", {"volume": 0.0}),
        ("flat", {"open": 100.0, "high": 100.0, "low": 100.0, "close": 100.0}),
        # Median close 100.5: the limits are 301.5 and 33.5.
        ("jump", {"close": 302.0, "high": 302.0}),
        ("jump", {"close": 33.0, "low": 33.0}),
        # Median range 2: the limit is a wick of 100.
        ("wick", {"high": 201.0}),
    ],
)
def test_a_noisy_candle_is_dropped_with_its_reason(reason: str, values: dict[str, float]) -> None:
    cleaned = clean(with_row(120, **values))
    assert cleaned.dropped == (Dropped(START + timedelta(hours=120), reason),)
    assert cleaned.counts == dict.fromkeys(REASONS, 0) | {reason: 1}
    assert len(cleaned.candles) == 149
    assert np.datetime64("2019-01-06") not in cleaned.candles.open_time


@pytest.mark.parametrize(
    "values",
    [{"close": 301.0, "high": 301.0}, {"close": 34.0, "low": 34.0}, {"high": 200.0}, {"volume": 1e-9}],
)
def test_a_candle_at_its_limit_stays(values: dict[str, float]) -> None:
    candles = with_row(120, **values)
    assert clean(candles).candles is candles


def test_of_two_reasons_the_first_is_named() -> None:
    assert clean(with_row(5, volume=0.0, close=101.5)).dropped[0].reason == "outside_range"


def test_the_first_candles_are_not_judged_by_medians_they_are_too_few_for() -> None:
    assert clean(with_row(LOOKBACK - 1, high=900.0)).dropped == ()
    assert len(clean(with_row(LOOKBACK, high=900.0)).dropped) == 1


def test_where_nothing_moves_a_wick_is_no_noise() -> None:
    candles = quiet()
    still = replace(candles, high=candles.close, low=candles.open, open=candles.close, close=candles.close)
    moved = replace(still, high=np.where(np.arange(150) == 140, 103.0, still.high), low=still.close)
    assert "wick" not in {row.reason for row in clean(moved).dropped}


@pytest.mark.parametrize("chunk", [7, noise.CHUNK])
def test_jumps_and_wicks_are_those_of_pandas_medians(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "CHUNK", chunk)
    candles = wild()
    spread, close = (pd.Series(values) for values in (candles.high - candles.low, candles.close))
    usual_close, usual = close.rolling(5).median().shift(1), spread.rolling(100).median().shift(1)
    top, bottom = np.maximum(candles.open, candles.close), np.minimum(candles.open, candles.close)
    wick = np.maximum(candles.high - top, bottom - candles.low)
    jump = (close > 3 * usual_close) | (close * 3 < usual_close)
    expected = np.where(jump, "jump", np.where((wick > 50 * usual) & (usual > 0), "wick", ""))
    rows = np.flatnonzero(expected != "")
    found = clean(candles)
    assert [row.reason for row in found.dropped] == expected[rows].tolist()
    assert [row.open_time for row in found.dropped] == [to_datetime(candles.open_time[row]) for row in rows]
    assert min(found.counts["jump"], found.counts["wick"]) > 20


def test_later_candles_do_not_change_what_is_dropped() -> None:
    candles = with_row(120, high=201.0, volume=0.0)
    for stop in (121, 130, 150):
        assert clean(candles.slice(0, stop)).dropped == (Dropped(START + timedelta(hours=120), "no_volume"),)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_of_two_real_years_only_bars_without_movement_are_dropped(symbol: str) -> None:
    cleaned = clean(real_candles(symbol))
    assert sum(cleaned.counts.values()) - cleaned.counts["flat"] - cleaned.counts["no_volume"] == 0
    assert len(cleaned.dropped) < 10
    assert len(cleaned.candles) == len(real_candles(symbol)) - len(cleaned.dropped)


def test_no_candles_are_clean() -> None:
    assert clean(Candles.empty("1h")).counts == dict.fromkeys(REASONS, 0)
