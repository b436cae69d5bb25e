"""Features against pandas and plain loops, their lookbacks, and what no candle may do to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ml.candles import OHLCV, PRICES, Candles
from ml.features import FEATURE_NAMES, FEATURES, WINDOW, market_features
from tests.real_candles import real_candles

pytestmark = pytest.mark.training

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def batch() -> Floats:
    return market_features(real_candles())


class Pandas:
    """The same indicators, written with pandas and loops."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.open, self.high, self.low, self.close, self.volume = (frame[name] for name in OHLCV)
        before = self.close.shift()
        spread = [self.high - self.low, (self.high - before).abs(), (self.low - before).abs()]
        self.true_range = pd.concat(spread, axis=1).max(axis=1).where(before.notna())
        self.atr = self.wilder(self.true_range)
        self.typical = (self.high + self.low + self.close) / 3
        self.step = np.log(self.close).diff()

    def wilder(self, values: pd.Series, period: int = 14) -> pd.Series:
        """Wilder's smoothing, started from the mean of the first ``period`` values."""
        smooth = values.copy()
        first = int(np.argmax(values.notna()))
        start = first + period - 1
        smooth[: start + 1] = np.nan
        smooth[start] = values[first : start + 1].mean()
        for row in range(start + 1, len(values)):
            smooth[row] = smooth[row - 1] + (values[row] - smooth[row - 1]) / period
        return smooth

    def rsi(self, period: int) -> pd.Series:
        change = self.close.diff()
        gain, loss = self.wilder(change.clip(lower=0), period), self.wilder(-change.clip(upper=0), period)
        return gain / (gain + loss) * 2 - 1

    def directional(self) -> tuple[pd.Series, pd.Series]:
        rise, fall = self.high.diff(), -self.low.diff()
        plus = self.wilder(rise.where((rise > fall) & (rise > 0), 0.0).where(rise.notna()))
        minus = self.wilder(fall.where((fall > rise) & (fall > 0), 0.0).where(fall.notna()))
        return plus / self.atr, minus / self.atr

    def dx(self) -> pd.Series:
        plus, minus = self.directional()
        return 100 * (plus - minus).abs() / (plus + minus)

    def ema(self, values: pd.Series, span: int) -> pd.Series:
        return values.ewm(span=span, adjust=False).mean()

    def range_ahead(self) -> pd.Series:
        spread = (self.high - self.low).to_numpy()
        expected = np.full(len(spread), np.nan)
        for row in range(200, len(spread)):
            same_hours = [spread[row - 24 * day + 1 : row - 24 * day + 13].mean() for day in range(1, 8)]
            expected[row] = np.mean(same_hours) / self.atr[row]
        return pd.Series(expected)

    def slope(self, bars: int) -> pd.Series:
        line = (
            np.log(self.close).rolling(bars).apply(lambda y: np.polyfit(np.arange(bars), y, 1)[0], raw=True)
        )
        return pd.Series(line * self.close / self.atr)

    def mfi(self) -> pd.Series:
        flow = self.typical * self.volume
        up = flow.where(self.typical.diff() > 0, 0.0).rolling(14).sum()
        down = flow.where(self.typical.diff() < 0, 0.0).rolling(14).sum()
        return up / (up + down) * 2 - 1

    def money_flow(self) -> pd.Series:
        place = (2 * self.close - self.low - self.high) / (self.high - self.low)
        return (place.fillna(0) * self.volume).rolling(20).sum() / self.volume.rolling(20).sum()

    def stochastic(self) -> pd.Series:
        low, high = self.low.rolling(14).min(), self.high.rolling(14).max()
        return ((self.close - low) / (high - low)).rolling(3).mean() * 2 - 1

    def cci(self) -> pd.Series:
        mean = self.typical.rolling(20).mean()
        deviation = self.typical.rolling(20).apply(lambda x: np.abs(x - x.mean()).mean(), raw=True)
        return (self.typical - mean) / (1.5 * deviation)

    def macd_histogram(self) -> pd.Series:
        macd = self.ema(self.close, 12) - self.ema(self.close, 26)
        return (macd - self.ema(macd, 9)) / self.atr

    def dema(self) -> pd.Series:
        once = self.ema(self.close, 20)
        return (self.close - (2 * once - self.ema(once, 20))) / self.atr

    def bollinger(self) -> pd.Series:
        return (self.close - self.close.rolling(20).mean()) / (2 * self.close.rolling(20).std(ddof=0))

    def vwap(self) -> pd.Series:
        traded = (self.typical * self.volume).rolling(24).sum() / self.volume.rolling(24).sum()
        return (self.close - traded) / self.atr

    def wicks(self) -> pd.Series:
        top, bottom = np.maximum(self.open, self.close), np.minimum(self.open, self.close)
        return pd.Series(((bottom - self.low) - (self.high - top)) / (self.high - self.low))


BY_HAND: dict[str, Callable[[Pandas], pd.Series]] = {
    "move_24": lambda p: p.close.diff(24) / p.atr / np.sqrt(24),
    "rsi_14": lambda p: p.rsi(14),
    "stoch_k": Pandas.stochastic,
    "cci_20": Pandas.cci,
    "mfi_14": Pandas.mfi,
    "bop": lambda p: (p.close - p.open) / (p.high - p.low),
    "macd_histogram": Pandas.macd_histogram,
    "dema_20": Pandas.dema,
    "ema_50": lambda p: (p.close - p.ema(p.close, 50)) / p.atr,
    "midprice_24": lambda p: (p.close - (p.high.rolling(24).max() + p.low.rolling(24).min()) / 2) / p.atr,
    "slope_48": lambda p: p.slope(48),
    "di_14": lambda p: p.directional()[0] - p.directional()[1],
    "bollinger_20": Pandas.bollinger,
    "on_balance_24": lambda p: (
        (np.sign(p.close.diff()) * p.volume).rolling(24).sum() / p.volume.rolling(24).sum()
    ),
    "money_flow_20": Pandas.money_flow,
    "vwap_24": Pandas.vwap,
    "wicks": Pandas.wicks,
    "dx_14": Pandas.dx,
    "adx_14": lambda p: p.wilder(p.dx()),
    "natr_14": lambda p: p.atr / p.close,
    "atr_ratio": lambda p: p.wilder(p.true_range, 7) / p.wilder(p.true_range, 28),
    "true_range": lambda p: p.true_range / p.atr,
    "volatility_ratio": lambda p: np.sqrt((p.step**2).rolling(12).mean() / (p.step**2).rolling(72).mean()),
    "range_ahead": Pandas.range_ahead,
    "bollinger_width_20": lambda p: 4 * p.close.rolling(20).std(ddof=0) / p.close.rolling(20).mean(),
    "width_rank_500": lambda p: (
        (
            (4 * p.close.rolling(20).std(ddof=0) / p.close.rolling(20).mean()).rolling(500).rank(method="min")
            - 1
        )
        / 500
    ),
    "volume_surge": lambda p: p.volume / p.volume.rolling(20).mean(),
    "volume_trend": lambda p: p.volume.rolling(12).mean() / p.volume.rolling(96).mean(),
}


@pytest.fixture(scope="module")
def by_pandas() -> Pandas:
    return Pandas(real_candles().slice(0, 2500).to_frame())


@pytest.mark.parametrize("name", BY_HAND)
def test_a_feature_is_what_pandas_makes_of_its_definition(
    name: str, by_pandas: Pandas, batch: Floats
) -> None:
    column = FEATURE_NAMES.index(name)
    # From WINDOW on, so that no average still feels how each library starts it.
    found = batch[WINDOW:2500, column]
    expected = BY_HAND[name](by_pandas).to_numpy()[WINDOW:]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_at_least_thirty_indicators_are_talibs_and_lookbacks_leave_room_for_dropped_candles() -> None:
    from_talib = [f for f in FEATURES if f.source.split("(")[0].isupper() or "(close - " in f.source]
    assert len(from_talib) >= 30
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == len(FEATURES)
    assert max(feature.lookback for feature in FEATURES) + 100 < WINDOW <= 1024


def test_the_documented_table_names_every_feature_with_its_lookback() -> None:
    text = (Path(__file__).parents[3] / "docs" / "features.md").read_text(encoding="utf-8")
    turned = {True: "yes", False: ""}
    expected = [f"| `{f.name}` | {f.lookback} | {f.source} | {turned[f.oriented]} |" for f in FEATURES]
    assert [
        line for line in text.splitlines() if line.split("`")[1:2] and line.endswith(("yes |", "|  |"))
    ] == expected


def scaled_error(found: Floats, expected: Floats, batch: Floats) -> float:
    """Largest difference relative to the value, or to the feature's spread where that is larger."""
    assert (np.isnan(found) == np.isnan(expected)).all()
    scale = np.fmax(np.abs(expected), np.nanstd(batch, axis=0))
    return float(np.nan_to_num(np.abs(found - expected) / scale).max())


def test_a_window_gives_the_batch_values_at_a_thousand_random_moments(batch: Floats) -> None:
    candles = real_candles()
    moments = np.random.default_rng(11).integers(WINDOW - 1, len(candles), 1000)
    live = np.array([market_features(candles.slice(t - WINDOW + 1, t + 1))[-1] for t in moments])
    assert scaled_error(live, batch[moments], batch) < 1e-9


def test_a_features_lookback_alone_gives_its_batch_value(batch: Floats) -> None:
    candles = real_candles()
    draw = np.random.default_rng(12)
    for column, feature in enumerate(FEATURES):
        for t in draw.integers(feature.lookback, len(candles), 12):
            live = market_features(candles.slice(t - feature.lookback, t + 1))[-1, column]
            scale = max(abs(batch[t, column]), np.nanstd(batch[:, column]))
            assert abs(live - batch[t, column]) < 1e-9 * scale or np.isnan([live, batch[t, column]]).all(), (
                feature.name
            )


@pytest.mark.parametrize("n", [0, 1, 30, 400, 900, 1100])
@pytest.mark.parametrize("last", [1, 64, 1100, 2000])
def test_the_last_rows_alone_are_those_of_all_rows(n: int, last: int, batch: Floats) -> None:
    candles = real_candles().slice(0, n)
    every, found = market_features(candles), market_features(candles, last)
    assert found.shape == (min(last, n), len(FEATURES))
    if n:
        assert scaled_error(found, every[-last:], batch) < 1e-9
    if n <= last:
        np.testing.assert_array_equal(found, every)


def test_real_features_are_missing_before_their_lookback_and_nearly_never_after(batch: Floats) -> None:
    for column, feature in zip(batch.T, FEATURES, strict=True):
        assert np.isnan(column[: feature.lookback]).all()
        assert np.isnan(column[feature.lookback :]).mean() < 0.001, feature.name
        assert np.isfinite(column[feature.lookback]), feature.name


def test_oriented_features_turn_with_the_market_and_the_others_stay() -> None:
    """A market mirrored in its log price (up is down) turns the sign of what is oriented."""
    candles = real_candles().slice(0, 3000)
    turned = replace(
        candles,
        open=1e8 / candles.open,
        high=1e8 / candles.low,
        low=1e8 / candles.high,
        close=1e8 / candles.close,
    )
    plain, mirrored = market_features(candles)[WINDOW:], market_features(turned)[WINDOW:]
    for column, feature in enumerate(FEATURES):
        if feature.name not in ("hour_sin", "hour_cos"):
            together = np.corrcoef(plain[:, column], mirrored[:, column])[0, 1]
            assert together < -0.9 if feature.oriented else together > 0.9, (feature.name, together)


@dataclass(frozen=True)
class Ugly:
    """Candles that the contract allows, the ugly ones included: still, without volume, wild, tiny, huge."""

    n: int
    seed: int
    wild: float
    moving: float
    wicked: float
    traded: float
    price: float
    volume: float

    def candles(self) -> Candles:
        rng = np.random.default_rng(self.seed)
        moves = rng.normal(0, self.wild, self.n) * (rng.random(self.n) < self.moving)
        close = self.price * np.exp(np.clip(np.cumsum(moves), -10, 10))
        open_ = np.concatenate([close[:1], close[:-1]])
        wick = rng.exponential(self.wild, (2, self.n)) * (rng.random((2, self.n)) < self.wicked)
        high = np.maximum(open_, close) * (1 + wick[0])
        low = np.minimum(open_, close) / (1 + wick[1])
        volume = rng.exponential(self.volume, self.n) * (rng.random(self.n) < self.traded)
        hours = np.cumsum(rng.integers(1, 3, self.n))
        times = np.datetime64("2019-01-01", "us") + hours * np.timedelta64(1, "h")
        return Candles("1h", times, open_, high, low, close, volume)


UGLY = st.builds(
    Ugly,
    n=st.integers(0, 1100),
    seed=st.integers(0, 2**32 - 1),
    wild=st.sampled_from([1e-5, 1e-3, 0.01, 0.1]),
    moving=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    wicked=st.sampled_from([0.0, 0.5, 1.0]),
    traded=st.sampled_from([0.0, 0.7, 1.0]),
    price=st.sampled_from([1e-3, 1.0, 1e6]),
    volume=st.sampled_from([1e-3, 1.0, 1e6]),
)


@settings(max_examples=60, deadline=None)
@given(UGLY)
def test_no_candle_makes_a_feature_infinite_or_changes_the_shape(ugly: Ugly) -> None:
    candles = ugly.candles()
    candles.validate()
    features = market_features(candles)
    assert features.shape == (ugly.n, len(FEATURES))
    assert not np.isinf(features).any()


@settings(max_examples=40, deadline=None)
@given(UGLY, st.sampled_from([1e-3, 7.3, 1000.0]))
def test_the_currency_and_the_unit_of_volume_change_no_feature(ugly: Ugly, factor: float) -> None:
    # Where nothing moves an oscillator is rounding over rounding, and rounding has a unit.
    candles = replace(ugly, moving=max(ugly.moving, 0.5)).candles()
    prices = {name: getattr(candles, name) * factor for name in PRICES}
    plain = market_features(candles)
    scaled = market_features(replace(candles, **prices, volume=candles.volume * 3))
    for column, feature in enumerate(FEATURES):
        np.testing.assert_allclose(
            scaled[:, column], plain[:, column], rtol=1e-6, atol=1e-6, err_msg=feature.name
        )
