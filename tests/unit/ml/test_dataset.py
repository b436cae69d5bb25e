"""The table that models learn from: whole rows by hand, pattern confidence by an obvious loop, refusals."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import talib

from ml.candles import Candles, to_datetime
from ml.confidence import BASE_RATE, PRIOR_OUTCOMES, confidence_from, pattern_hit_rates
from ml.config import LabelConfig, SplitConfig
from ml.dataset import (
    FEATURE_SET,
    ROW_FEATURE_NAMES,
    build_rows,
    check_candles,
    label_signals,
    read_market,
    row_features,
)
from ml.errors import KeyRejected, TrainingRefused
from ml.features import FEATURE_NAMES, FEATURES, WINDOW, market_features
from ml.keys import REGIMES
from ml.labels import triple_barrier, uniqueness
from ml.noise import clean
from ml.patterns import detect, pattern_names
from ml.regimes import LOOKBACK, classify
from ml.rows import SignalRows
from tests.real_candles import real_candles

pytestmark = pytest.mark.training

CONFIG = LabelConfig()
HORIZON = timedelta(hours=12)


@pytest.fixture(scope="module")
def candles() -> Candles:
    return real_candles().slice(0, 5000)


@pytest.fixture(scope="module")
def rows(candles: Candles) -> SignalRows:
    return build_rows(candles, symbol="BTCUSDT", config=CONFIG)


def test_every_signal_with_a_regime_is_a_row_in_order(candles: Candles, rows: SignalRows) -> None:
    found, regime = detect(candles), classify(candles)
    kept = regime[found.at] >= 0
    assert len(rows) == kept.sum() > 3000
    np.testing.assert_array_equal(rows.close_time, candles.close_time[found.at[kept]])
    np.testing.assert_array_equal(rows.direction, found.direction[kept])
    np.testing.assert_array_equal(rows.patterns, found.patterns[kept])
    np.testing.assert_array_equal(rows.regime, regime[found.at[kept]])
    assert rows.close_time[0] >= candles.close_time[LOOKBACK]
    assert (rows.symbols, set(rows.symbol_code.tolist())) == (("BTCUSDT",), {0})


def test_prices_labels_costs_and_weights_of_a_row_are_those_of_its_candle(
    candles: Candles, rows: SignalRows
) -> None:
    at = np.searchsorted(candles.close_time, rows.close_time)
    atr = talib.ATR(candles.high, candles.low, candles.close, 14)[at]
    np.testing.assert_array_equal(rows.entry_price, candles.close[at])
    np.testing.assert_allclose(rows.atr, atr, rtol=1e-12)
    labels = triple_barrier(candles, at, rows.direction, rows.atr, CONFIG)
    np.testing.assert_array_equal(rows.label, labels.label)
    np.testing.assert_array_equal(rows.label_end, labels.label_end)
    np.testing.assert_array_equal(rows.gross_return_atr, labels.gross_return_atr)
    np.testing.assert_array_equal(rows.uniqueness, uniqueness(candles, at, labels.label_end))
    # 10 + 2 basis points a side, two sides.
    np.testing.assert_allclose(rows.cost_atr, 0.0024 * candles.close[at] / atr, rtol=1e-9)


def test_features_of_a_row_speak_for_its_direction(candles: Candles, rows: SignalRows) -> None:
    at = np.searchsorted(candles.close_time, rows.close_time)
    market = market_features(candles)[at]
    assert rows.features.dtype == np.float32
    assert rows.feature_names == ROW_FEATURE_NAMES
    for column, feature in enumerate(FEATURES):
        sign = rows.direction if feature.oriented else 1
        np.testing.assert_array_equal(rows.features[:, column], (sign * market[:, column]).astype(np.float32))
    named = dict(zip(rows.feature_names, rows.features.T, strict=True))
    np.testing.assert_array_equal(named["direction"], rows.direction)
    counts = [len(pattern_names(int(mask))) for mask in rows.patterns]
    np.testing.assert_array_equal(named["pattern_count"], counts)
    for code, regime in enumerate(REGIMES):
        np.testing.assert_array_equal(named[f"regime_{regime}"], rows.regime == code)


def test_a_live_signal_has_the_features_of_its_batch_row(candles: Candles, rows: SignalRows) -> None:
    at = np.searchsorted(candles.close_time, rows.close_time)
    spread = rows.features.std(axis=0)
    for i in np.random.default_rng(1).choice(np.flatnonzero(at >= WINDOW), 100):
        live = read_market(candles.slice(int(at[i]) - WINDOW + 1, int(at[i]) + 1))
        found = row_features(
            live, np.array([WINDOW - 1]), rows.direction[i : i + 1], rows.patterns[i : i + 1]
        )
        # float32 may round the same value up here and down there.
        np.testing.assert_allclose(found[0] / spread, rows.features[i] / spread, rtol=1e-6, atol=1e-6)
        assert live.regime[-1] == rows.regime[i]


def test_a_raw_window_cleaned_by_itself_gives_the_batch_row() -> None:
    raw = real_candles().slice(0, 5000)
    volume = np.where(np.random.default_rng(6).random(len(raw)) < 0.02, 0.0, raw.volume)
    raw = replace(raw, volume=volume)
    batch = read_market(clean(raw).candles)
    rows = np.searchsorted(batch.candles.open_time, raw.open_time)
    for t in range(WINDOW, len(raw), 200):
        live = read_market(clean(raw.slice(t - WINDOW + 1, t + 1)).candles)
        same = int(rows[t]) if volume[t] else int(rows[t]) - 1
        assert live.candles.open_time[-1] == batch.candles.open_time[same]
        np.testing.assert_allclose(live.features[-1], batch.features[same], rtol=1e-8, atol=1e-8)


def test_a_signals_confidence_is_that_of_an_obvious_loop(rows: SignalRows) -> None:
    known_at = rows.close_time + np.timedelta64(HORIZON)
    for i in np.random.default_rng(4).integers(0, len(rows), 40):
        known = [j for j in range(i) if known_at[j] <= rows.close_time[i] and rows.labelled[j]]
        base = (sum(rows.label[known]) + 1) / (len(known) + 2)
        rates = []
        for name in pattern_names(int(rows.patterns[i])):
            same = [
                rows.label[j]
                for j in known
                if rows.direction[j] == rows.direction[i] and name in pattern_names(int(rows.patterns[j]))
            ]
            rates.append((sum(same) + PRIOR_OUTCOMES * base) / (len(same) + PRIOR_OUTCOMES))
        assert rows.pattern_confidence[i] == pytest.approx(np.mean(rates), rel=1e-12)


def test_the_table_of_rates_gives_a_live_signal_what_its_row_has(rows: SignalRows) -> None:
    for i in np.random.default_rng(5).integers(0, len(rows), 200):
        rates = pattern_hit_rates(rows, to_datetime(rows.close_time[i]), horizon=HORIZON)
        live = confidence_from(rates, int(rows.patterns[i]), int(rows.direction[i]))
        assert live == pytest.approx(rows.pattern_confidence[i], rel=1e-12)


def test_the_table_of_rates_of_a_cut_is_that_of_the_rows_known_then(
    candles: Candles, rows: SignalRows
) -> None:
    cut = to_datetime(candles.close_time[3000])
    then = build_rows(candles.until(cut), symbol="BTCUSDT", config=CONFIG)
    assert pattern_hit_rates(then, cut, horizon=HORIZON) == pattern_hit_rates(rows, cut, horizon=HORIZON)


def test_before_any_outcome_every_pattern_has_even_odds(rows: SignalRows) -> None:
    assert rows.pattern_confidence[0] == 0.5
    start = datetime(2017, 1, 1, tzinfo=UTC)
    rates = pattern_hit_rates(rows, start, horizon=HORIZON)
    assert rates == {BASE_RATE: 0.5}
    assert confidence_from(rates, 0b101, 1) == confidence_from(rates, 0, -1) == 0.5


def test_options_change_the_labels_and_costs_and_nothing_else(candles: Candles, rows: SignalRows) -> None:
    other = build_rows(candles, symbol="BTCUSDT", config=LabelConfig(profit_take_atr=2, fee_bps=0))
    assert np.nanmean(other.label) < np.nanmean(rows.label) - 0.1
    np.testing.assert_allclose(other.cost_atr, rows.cost_atr / 6)
    np.testing.assert_array_equal(other.features, rows.features)


def test_the_same_candles_give_the_same_bits(candles: Candles, rows: SignalRows) -> None:
    again = build_rows(candles, symbol="BTCUSDT", config=CONFIG)
    for field in fields(SignalRows):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(rows, field.name))


@pytest.mark.parametrize("n", [0, 1, LOOKBACK])
def test_too_few_candles_give_an_empty_table(n: int) -> None:
    few = build_rows(real_candles().slice(0, n), symbol="BTCUSDT", config=CONFIG)
    assert len(few) == 0
    assert few.features.shape == (0, len(ROW_FEATURE_NAMES))


def test_a_symbol_that_cannot_be_one_is_rejected(candles: Candles) -> None:
    with pytest.raises(KeyRejected, match="symbol"):
        build_rows(candles.slice(0, 10), symbol="../../etc", config=CONFIG)


def test_what_a_fit_depends_on_names_every_feature_once() -> None:
    assert len(FEATURE_SET) == len(set(FEATURE_SET))
    assert all(any(entry.startswith(name + ":") for entry in FEATURE_SET) for name in FEATURE_NAMES)


def test_no_candles_are_refused() -> None:
    with pytest.raises(TrainingRefused) as refused:
        check_candles(Candles.empty("1h"), SplitConfig(), symbol="BTCUSDT", dropped=7)
    assert refused.value.reason == "no_candles"


def test_missing_candles_over_the_limit_are_refused_with_both_shares() -> None:
    # 94 of 100 hours are there; the first and the last of them, so that 6 are missing between.
    there = np.delete(np.arange(100), [10, 11, 12, 50, 70, 71])
    candles = real_candles().slice(0, 94)
    holed = replace(candles, open_time=candles.open_time[0] + there * np.timedelta64(1, "h"))
    check_candles(holed, SplitConfig(max_missing_candle_share=0.06), symbol="BTCUSDT")
    with pytest.raises(TrainingRefused) as refused:
        check_candles(holed, SplitConfig(max_missing_candle_share=0.0599), symbol="BTCUSDT", dropped=2)
    assert refused.value.reason == "gaps"
    assert refused.value.detail.startswith(
        "BTCUSDT 1h: 6 of 100 candles are missing (6.00%; 2 dropped as noise), at most 5.99% may be"
    )


def test_a_crash_that_the_noise_filter_takes_for_a_bad_tick_still_stops_the_trade() -> None:
    whole = real_candles()
    rows = build_rows(whole, symbol="BTCUSDT", config=CONFIG)
    won = rows.close_time[(rows.label == 1) & (rows.direction > 0)]
    row = int(np.searchsorted(whole.close_time, won[-1]))
    low = whole.low.copy()
    low[row + 1] = whole.close[row] * 0.1  # a wick to a tenth of the price and back
    traded = replace(whole, low=low)
    cleaned = clean(traded).candles
    assert len(cleaned) < len(clean(whole).candles)

    def outcome(rows: SignalRows) -> float:
        signal = (rows.close_time == whole.close_time[row]) & (rows.direction > 0)
        return float(rows.gross_return_atr[signal][0])

    market = read_market(cleaned)
    walked = label_signals(market, symbol="BTCUSDT", config=CONFIG, traded=traded)
    assert outcome(walked) == -CONFIG.stop_loss_atr
    assert outcome(label_signals(market, symbol="BTCUSDT", config=CONFIG)) == CONFIG.profit_take_atr
