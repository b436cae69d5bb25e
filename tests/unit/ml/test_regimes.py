"""Regimes against an independent reading of the rules, candle by candle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import talib

from ml.keys import REGIMES
from ml.regimes import LOOKBACK, classify, classify_measures, measure
from ml.rolling import rolling_mean_std, rolling_rank, rolling_slope, rolling_sum, weighted_sum
from tests.real_candles import real_candles

pytestmark = pytest.mark.training


def test_regimes_of_real_candles_follow_the_rules_read_one_by_one() -> None:
    candles = real_candles()
    high, low, close = candles.high, candles.low, candles.close
    volatility = talib.ATR(high, low, close, 14) / close
    adx = talib.ADX(high, low, close, 14)
    closes = pd.Series(close)
    width = (4 * closes.rolling(20).std(ddof=0) / closes.rolling(20).mean()).to_numpy()
    found = classify(candles)
    for t in range(LOOKBACK, len(candles), 13):
        last = slice(t - 499, t + 1)
        if sum(volatility[last] < volatility[t]) >= 400:
            expected = "volatile"
        elif adx[t] > 25:
            expected = "trending"
        elif sum(width[last] < width[t]) < 125:
            expected = "consolidation"
        else:
            expected = "sideways"
        assert REGIMES[found[t]] == expected, t


def test_every_regime_is_common_in_real_candles_and_none_is_told_early() -> None:
    found = classify(real_candles())
    assert (found[:LOOKBACK] == -1).all()
    share = np.bincount(found[LOOKBACK:], minlength=4) / (len(found) - LOOKBACK)
    assert (share > 0.1).all()


@pytest.mark.parametrize(
    ("adx", "atr_rank", "width_rank", "expected"),
    [
        (99.0, 0.8, 0.0, "volatile"),
        (25.1, 0.798, 0.0, "trending"),
        (25.0, 0.798, 0.248, "consolidation"),
        (25.0, 0.798, 0.25, "sideways"),
    ],
)
def test_each_boundary_falls_on_its_stated_side(
    adx: float, atr_rank: float, width_rank: float, expected: str
) -> None:
    found = classify_measures(np.array([adx]), np.array([atr_rank]), np.array([width_rank]))
    assert [REGIMES[code] for code in found] == [expected]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_measure_leaves_the_regime_untold(missing: int) -> None:
    values = [np.array([30.0]), np.array([0.9]), np.array([0.1])]
    values[missing] = np.array([np.nan])
    assert classify_measures(*values).tolist() == [-1]


def test_a_rank_counts_the_values_strictly_below() -> None:
    values = np.array([5.0, 1, 3, 3, 4, 9, 0])
    # Windows of 4, newest last: 5133 -> 1 below 3; 1334 -> 3; 3349 -> 3; 3490 -> 0.
    expected = [np.nan, np.nan, np.nan, 0.25, 0.75, 0.75, 0.0]
    np.testing.assert_array_equal(rolling_rank(values, 4), expected)


def test_a_rank_over_many_chunks_agrees_with_pandas_ties_included() -> None:
    values = np.random.default_rng(3).integers(0, 400, 20_000).astype(float)
    values[:7] = np.nan
    expected = (pd.Series(values).rolling(500).rank(method="min") - 1) / 500
    np.testing.assert_allclose(rolling_rank(values, 500), expected, rtol=1e-15)


def test_a_rank_is_missing_while_its_window_holds_a_missing_value() -> None:
    values = np.arange(10.0)
    values[4] = np.nan
    assert np.flatnonzero(np.isnan(rolling_rank(values, 3))).tolist() == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("rows", [1, 2, 7, 500])
def test_a_window_is_summed_in_one_order_however_many_there_are(rows: int) -> None:
    """Bits, not digits: a live window has one row, and its features are the batch's."""
    values = np.random.default_rng(8).normal(1e4, 50, 20_000)
    in_order = [
        sum(values[end - 48 : end].tolist()) for end in range(len(values) - rows + 1, len(values) + 1)
    ]
    np.testing.assert_array_equal(rolling_sum(values, 48)[-rows:], np.array(in_order))
    for function in (rolling_sum, rolling_slope, lambda *of: np.stack(rolling_mean_std(*of), axis=-1)):
        expected = function(values, 48)[-rows:]
        for length in (rows + 47, rows + 100, len(values)):
            np.testing.assert_array_equal(function(values[-length:], 48)[-rows:], expected)


@pytest.mark.parametrize("n", [0, 1, 4, 5, 6, 40])
@pytest.mark.parametrize("last", [1, 2, 6, 40])
def test_the_last_sums_alone_are_those_of_all(n: int, last: int) -> None:
    values = np.random.default_rng(9).normal(1e4, 50, n)
    weights = np.array([0.5, 0, -3, 1, 2])
    expected = [
        sum((weights * values[end - 5 : end]).tolist()) if end >= 5 else np.nan for end in range(1, n + 1)
    ]
    np.testing.assert_allclose(weighted_sum(values, weights), expected, rtol=1e-14)
    rows = min(last, n)
    for every, found in (
        (weighted_sum(values, weights), weighted_sum(values, weights, rows)),
        (rolling_sum(values, 5), rolling_sum(values, 5, rows)),
        (rolling_slope(values, 5), rolling_slope(values, 5, rows)),
    ):
        np.testing.assert_array_equal(found, every[n - rows :])


@pytest.mark.parametrize("n", [0, 1, 20, 600, 2000])
@pytest.mark.parametrize("last", [1, 64, 700])
def test_measures_of_the_last_candles_are_those_of_all(n: int, last: int) -> None:
    candles = real_candles().slice(0, n)
    every, found = measure(candles), measure(candles, last)
    for name in ("atr", "adx", "middle", "width", "atr_rank", "width_rank"):
        expected = getattr(every, name)[-last:]
        assert len(getattr(found, name)) == min(last, n)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("n", [0, 1, 20, 600])
def test_too_few_candles_have_measures_of_their_length_and_no_regime(n: int) -> None:
    candles = real_candles().slice(0, n)
    assert classify(candles).tolist() == [-1] * n
    assert len(measure(candles).width_rank) == n
