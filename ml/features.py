"""The market's features: names, the lookback of each, one function for batch and live.

Every feature is a ratio (of prices, of volumes, or of a price move to ATR), so that symbols can be
pooled and a change of currency changes nothing. None is cumulative: each is decided by its lookback,
and ``WINDOW`` candles give the last row of any longer array to 1e-9 of the feature's scale.
Candles count by row: a gap in time is not filled and not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml import regimes
from ml.candles import Candles
from ml.feature_window import FeatureWindow, read_shared
from ml.indicators import ta
from ml.rolling import ema_lookback, rolling_slope, weighted_sum, wilder_lookback

__all__ = ["FEATURES", "FEATURE_NAMES", "WINDOW", "Feature", "market_features"]

Floats = NDArray[np.float64]
Ratio = tuple[Floats, Floats]
"""Part, of which the last rows are asked for, and whole, of those rows only; one value is that of all."""

ONE = np.ones(1)
PERIOD, ATR, ADX = regimes.PERIOD, regimes.ATR_LOOKBACK, regimes.ADX_LOOKBACK

WINDOW = 1024
"""Candles that a live request needs: the longest lookback, and room for what the noise filter drops."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of ``market_features``."""

    name: str
    window: int
    """Earlier candles that ``compute`` needs before a row: a live row is made of no more than these."""
    source: str
    """TA-Lib's functions in capitals; ``rolling`` is ``ml.rolling``."""
    compute: Callable[[FeatureWindow], Ratio]
    shared: int = 0
    """Earlier candles that decide what it takes of a row from the shared measures, such as ATR."""
    scale: float = 1.0
    offset: float = 0.0
    """The value is ``scale * part / whole + offset``, NaN where the whole is 0: undefined, not infinite."""
    oriented: bool = False
    """True: the sign means up or down, so that it turns with a signal's direction."""

    @property
    def lookback(self) -> int:
        """Earlier candles that decide the value to 1e-9 of its scale; NaN for as many first rows."""
        return max(self.window, self.shared)


def _move(name: str, bars: int) -> Feature:
    """Price move in ATR, over what a random walk makes of as many bars."""
    return Feature(
        name,
        bars,
        f"MOM({bars}) / ATR(14)" + (f" / sqrt({bars})" if bars > 1 else ""),
        lambda m: (ta.MOM(m.close, bars), m.now.atr),
        scale=1 / math.sqrt(bars),
        shared=ATR,
        oriented=True,
    )


def _oscillator(name: str, window: int, source: str, compute: Callable[[FeatureWindow], Floats]) -> Feature:
    """One of 0..100 as -1..1, so that its sign means up or down."""
    return Feature(name, window, source, lambda m: (compute(m), ONE), scale=1 / 50, offset=-1, oriented=True)


def _above(name: str, window: int, line: str, compute: Callable[[FeatureWindow], Floats]) -> Feature:
    """How far the close is above a line, in ATR; ``compute`` makes the line."""
    return Feature(
        name,
        window,
        f"(close - {line}) / ATR(14)",
        lambda m: (m.now.close - m.now.of(compute(m)), m.now.atr),
        shared=ATR,
        oriented=True,
    )


def _slope(m: FeatureWindow, bars: int) -> Ratio:
    """Slope of the regression line of the log close, in ATR a bar."""
    return rolling_slope(np.log(m.close), bars, m.now.rows) * m.now.close, m.now.atr


def _channel(m: FeatureWindow, bars: int) -> Ratio:
    """Place of the close between the lowest low (0) and the highest high (1): Donchian's channel."""
    floor = ta.MIN(m.low, bars)
    return m.close - floor, m.now.of(ta.MAX(m.high, bars) - floor)


def _bollinger(m: FeatureWindow) -> Ratio:
    """Place of the close between the bands: -1 lower, 1 upper; NaN while the spread is only rounding."""
    middle, width = m.now.measures.middle, m.now.measures.width
    return m.close - middle, (width > 1e-12) * width * middle


def _volatility_ratio(m: FeatureWindow) -> Ratio:
    """Spread of the last 12 log returns over that of the last 72 (around 0: hourly drift is noise)."""
    square = np.log(ta.ROCR(m.close, 1)) ** 2
    return np.sqrt(m.sum(square, 12)), np.sqrt(m.sum(square, 72))


SAME_HOURS = np.zeros(168)
"""Weights of the last 168 candles: the 12 that came 24, 48 … 168 ago, those 24 ago being 12 to 23 back."""
SAME_HOURS.reshape(7, 24)[:, :12] = 1 / (7 * 12)


def _range_ahead(m: FeatureWindow) -> Ratio:
    """What range the clock promises: that of the 12 candles that came 24, 48 … 168 candles ago, in ATR.

    On hourly candles these are the next 12 hours as they were on each of the last 7 days.
    """
    return weighted_sum(m.high - m.low, SAME_HOURS, m.now.rows), m.now.atr


def _on_balance(m: FeatureWindow) -> Ratio:
    """On-balance volume (Granville) of 24 candles, as a share of their volume."""
    volume = m.volume
    return m.sum(np.sign(ta.MOM(m.close, 1)) * volume, 24), m.sum(volume, 24)


def _money_flow(m: FeatureWindow) -> Ratio:
    """Chaikin money flow of 20 candles: volume times the close's place in its range, 0 if it has none."""
    (high, low, close), volume = m.hlc, m.volume
    spread, flow = high - low, np.zeros(len(volume))
    np.divide(((close - low) - (high - close)) * volume, spread, out=flow, where=spread > 0)
    return m.sum(flow, 20), m.sum(volume, 20)


def _volume_weighted(m: FeatureWindow) -> Floats:
    """Mean price of 24 candles, weighted by their volume."""
    volume = m.volume
    price: Floats = m.sum(ta.TYPPRICE(*m.hlc) * volume, 24) / m.sum(volume, 24)
    return price


def _wicks(m: FeatureWindow) -> Ratio:
    """Lower wick minus upper wick, over the range: over 0 where the price was pushed back up."""
    high, low, close = m.hlc
    return (m.open - high) + (close - low), high - low


FEATURES: tuple[Feature, ...] = (
    *(_move(f"move_{bars}", bars) for bars in (1, 6, 12, 24, 72, 168)),
    _oscillator("rsi_14", ATR, "RSI(14)", lambda m: ta.RSI(m.close, 14)),
    _oscillator(
        "stoch_k",
        17,
        "STOCH(14, 3, 3), %K",
        lambda m: ta.STOCH(*m.hlc, fastk_period=14, slowk_period=3, slowd_period=3)[0],
    ),
    _oscillator("stochrsi", ATR + 14, "STOCHRSI(14, 14)", lambda m: ta.STOCHRSI(m.close, 14, 14, 1)[0]),
    Feature(
        "willr_50",
        49,
        "WILLR(50)",
        lambda m: (ta.WILLR(*m.hlc, 50), ONE),
        scale=1 / 50,
        offset=1,
        oriented=True,
    ),
    Feature("cci_20", 19, "CCI(20) / 100", lambda m: (ta.CCI(*m.hlc, 20), ONE), scale=0.01, oriented=True),
    _oscillator("mfi_14", 14, "MFI(14)", lambda m: ta.MFI(*m.hlc, m.volume, 14)),
    _oscillator("ultosc", 28, "ULTOSC(7, 14, 28)", lambda m: ta.ULTOSC(*m.hlc, 7, 14, 28)),
    Feature(
        "aroonosc_25",
        25,
        "AROONOSC(25) / 100",
        lambda m: (ta.AROONOSC(m.high, m.low, 25), ONE),
        scale=0.01,
        oriented=True,
    ),
    Feature("bop", 0, "BOP", lambda m: (ta.BOP(m.open, *m.hlc), ONE), oriented=True),
    Feature(
        "trix_15",
        ATR,
        "TRIX(15) / NATR(14)",
        lambda m: (ta.TRIX(m.close, 15) * m.close, m.now.atr),
        scale=0.01,
        shared=ATR,
        oriented=True,
    ),
    Feature(
        "macd_histogram",
        ATR,
        "MACD(12, 26, 9) histogram / ATR(14)",
        lambda m: (ta.MACD(m.close, 12, 26, 9)[2], m.now.atr),
        shared=ATR,
        oriented=True,
    ),
    _above("dema_20", ATR, "DEMA(20)", lambda m: ta.DEMA(m.close, 20)),
    _above("ema_50", 50 + ema_lookback(50), "EMA(50)", lambda m: ta.EMA(m.close, 50)),
    _above("tema_20", ATR, "TEMA(20)", lambda m: ta.TEMA(m.close, 20)),
    _above("wma_100", 99, "WMA(100)", lambda m: ta.WMA(m.close, 100)),
    _above("midprice_24", 23, "MIDPRICE(24)", lambda m: ta.MIDPRICE(m.high, m.low, 24)),
    _above("linearreg_24", 23, "LINEARREG(24)", lambda m: ta.LINEARREG(m.close, 24)),
    Feature(
        "slope_14",
        13,
        "rolling: slope of 14 log closes / NATR(14)",
        lambda m: _slope(m, 14),
        shared=ATR,
        oriented=True,
    ),
    Feature(
        "slope_48",
        47,
        "rolling: slope of 48 log closes / NATR(14)",
        lambda m: _slope(m, 48),
        shared=ATR,
        oriented=True,
    ),
    Feature(
        "channel_200",
        199,
        "close between MIN(low, 200) and MAX(high, 200)",
        lambda m: _channel(m, 200),
        scale=2,
        offset=-1,
        oriented=True,
    ),
    Feature(
        "di_14",
        0,
        "(PLUS_DI(14) - MINUS_DI(14)) / 100",
        lambda m: (m.now.plus - m.now.minus, ONE),
        shared=ATR,
        scale=0.01,
        oriented=True,
    ),
    Feature(
        "bollinger_20",
        0,
        "rolling: close between the bands of 20",
        _bollinger,
        shared=19,
        scale=2,
        oriented=True,
    ),
    Feature("on_balance_24", 24, "rolling: OBV of 24 / their volume", _on_balance, oriented=True),
    Feature("money_flow_20", 19, "rolling: Chaikin money flow of 20", _money_flow, oriented=True),
    _above("vwap_24", 23, "rolling VWAP of 24 TYPPRICE", _volume_weighted),
    Feature("wicks", 0, "(lower wick - upper wick) / range", _wicks, oriented=True),
    Feature("adx_14", 0, "ADX(14)", lambda m: (m.now.measures.adx, ONE), shared=ADX),
    Feature(
        "dx_14",
        0,
        "DX(14)",
        lambda m: (abs(m.now.plus - m.now.minus), m.now.plus + m.now.minus),
        shared=ATR,
        scale=100,
    ),
    Feature(
        "adx_change",
        ADX + 13,
        "ADX(14) - ADXR(14)",
        lambda m: (m.now.measures.adx - m.now.of(ta.ADXR(*m.hlc, PERIOD)), ONE),
        shared=ADX,
    ),
    Feature("natr_14", 0, "NATR(14) / 100", lambda m: (m.now.atr, m.close), shared=ATR),
    Feature(
        "atr_ratio",
        28 + wilder_lookback(28),
        "ATR(7) / ATR(28)",
        lambda m: (ta.ATR(*m.hlc, 7), m.now.of(ta.ATR(*m.hlc, 28))),
    ),
    Feature("true_range", 1, "TRANGE / ATR(14)", lambda m: (ta.TRANGE(*m.hlc), m.now.atr), shared=ATR),
    Feature(
        "volatility_ratio",
        72,
        "rolling: spread of 12 log returns / of 72",
        _volatility_ratio,
        scale=math.sqrt(72 / 12),
    ),
    Feature(
        "range_ahead",
        167,
        "rolling: mean range of 12 candles, 24 to 168 candles ago / ATR(14)",
        _range_ahead,
        shared=ATR,
    ),
    Feature(
        "bollinger_width_20",
        0,
        "rolling: band width of 20 / middle",
        lambda m: (m.now.measures.width, ONE),
        shared=19,
    ),
    Feature(
        "atr_rank_500",
        0,
        "rolling: rank of NATR(14) in 500",
        lambda m: (m.now.measures.atr_rank, ONE),
        shared=regimes.LOOKBACK,
    ),
    Feature(
        "width_rank_500",
        0,
        "rolling: rank of the band width in 500",
        lambda m: (m.now.measures.width_rank, ONE),
        shared=19 + 499,
    ),
    Feature(
        "volume_surge",
        19,
        "rolling: volume / mean of 20",
        lambda m: (m.volume, m.sum(m.volume, 20)),
        scale=20,
    ),
    Feature(
        "volume_trend",
        95,
        "rolling: mean volume of 12 / of 96",
        lambda m: (m.sum(m.volume, 12), m.sum(m.volume, 96)),
        scale=96 / 12,
    ),
    Feature("hour_sin", 0, "sine of the close's time of day", lambda m: (np.sin(m.now.day_angle), ONE)),
    Feature("hour_cos", 0, "cosine of the close's time of day", lambda m: (np.cos(m.now.day_angle), ONE)),
)
"""The columns of ``market_features``, in order."""

FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
WINDOWS = {feature.window for feature in FEATURES}
LOOKBACKS = tuple(feature.lookback for feature in FEATURES)
LONGEST_LOOKBACK = max(LOOKBACKS)
SCALES, OFFSETS = (
    np.array([[getattr(feature, name)] for feature in FEATURES]) for name in ("scale", "offset")
)


def market_features(candles: Candles, last: int | None = None) -> Floats:
    """Every feature of every candle: (n, ``len(FEATURES)``) float64, columns as ``FEATURE_NAMES``.

    Row t uses candles up to t. NaN in a feature's first ``lookback`` rows, and where it is undefined
    (no range, no volume, no movement in its window); never infinite.

    Args:
        candles: what the features are of.
        last: only that many last rows, or all if they are fewer. Each feature is then computed from
            the candles of its lookback and of these rows, by the function that computes all of them.
    """
    n = len(candles)
    first = 0 if last is None else max(n - last, 0)
    columns = np.empty((len(FEATURES), n - first))
    if n == first:
        return columns.T
    shared = read_shared(candles, n - first)
    tails = {window: FeatureWindow(shared, candles, max(first - window, 0)) for window in WINDOWS}
    asked = slice(first - n, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Divided column by column: parts kept for one division of all would double the memory of a batch.
        for column, feature in zip(columns, FEATURES, strict=True):
            part, whole = feature.compute(tails[feature.window])
            np.divide(part[asked], whole, out=column)
    columns *= SCALES
    columns += OFFSETS
    columns[np.isinf(columns)] = np.nan
    if first < LONGEST_LOOKBACK:
        for column, lookback in zip(columns, LOOKBACKS, strict=True):
            column[: max(lookback - first, 0)] = np.nan
    return columns.T
