"""From candles to the table that models learn from; a live signal gets its features by the same code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml import regimes
from ml.candles import Candles, find_gaps
from ml.confidence import confidence_from, pattern_confidence, pattern_hit_rates
from ml.config import LabelConfig, SplitConfig
from ml.errors import TrainingRefused
from ml.features import FEATURE_NAMES, FEATURES, market_features
from ml.keys import REGIMES, check_symbol, interval_duration
from ml.labels import round_trip_cost_atr, triple_barrier, uniqueness
from ml.patterns import PATTERN_NAMES, detect
from ml.rows import SignalRows

__all__ = [
    "FEATURE_SET",
    "ROW_FEATURE_NAMES",
    "Market",
    "build_rows",
    "check_candles",
    "confidence_from",
    "label_signals",
    "pattern_hit_rates",
    "read_market",
    "row_features",
]

Floats = NDArray[np.float64]

SIGNAL_FEATURE_NAMES = ("direction", "pattern_count", *(f"regime_{name}" for name in REGIMES))
ROW_FEATURE_NAMES = (*FEATURE_NAMES, *SIGNAL_FEATURE_NAMES)
"""Columns of ``SignalRows.features``."""

ROWS_VERSION = 2
"""Raise it with any change to what a row holds that its features' names do not show: noise limits, regime
rules, labels, a formula. Fits made of other rows are then not found any more."""

FEATURE_SET = (
    f"rows {ROWS_VERSION}",
    *(f"{feature.name}: {feature.source}, {feature.oriented}" for feature in FEATURES),
    *SIGNAL_FEATURE_NAMES,
    *PATTERN_NAMES,
)
"""What a fit's address says of its features: another set is another fit."""

ORIENTED = np.array([feature.oriented for feature in FEATURES])
MEASURES = [FEATURE_NAMES.index(name) for name in ("adx_14", "atr_rank_500", "width_rank_500", "natr_14")]


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Candles with what is known at each one's close; arrays have one row a candle."""

    candles: Candles
    features: Floats
    """(n, ``len(FEATURE_NAMES)``)."""
    regime: NDArray[np.int8]
    """(n,) index into ``REGIMES``, -1 while the history is too short."""
    atr: Floats
    """(n,) ATR(14), price units."""


def check_candles(candles: Candles, config: SplitConfig, *, symbol: str, dropped: int = 0) -> None:
    """Refuse candles that cannot carry a model, before anything is computed from them.

    Args:
        candles: what is left after the noise filter.
        config: ``max_missing_candle_share`` is read.
        symbol: named in the refusal.
        dropped: how many the noise filter took; they count as missing.

    Raises:
        TrainingRefused: ``no_candles``; or ``gaps``, where over ``max_missing_candle_share`` of the candles
            between the first and the last are missing.
    """
    name = f"{symbol} {candles.interval}"
    if len(candles) == 0:
        raise TrainingRefused(
            "no_candles",
            f"{name}: 0 candles are left of {dropped} known at the data cut, at least 1 is needed",
        )
    missing = sum(gap.missing for gap in find_gaps(candles))
    share = missing / (len(candles) + missing)
    if share > config.max_missing_candle_share:
        raise TrainingRefused(
            "gaps",
            f"{name}: {missing} of {len(candles) + missing} candles are missing ({share:.2%}; {dropped} "
            f"dropped as noise), at most {config.max_missing_candle_share:.2%} may be: import the rest",
        )


def read_market(candles: Candles, last: int | None = None) -> Market:
    """Features and regime of every candle, or of the ``last`` last; row t uses candles up to t."""
    features = market_features(candles, last)
    candles = candles.slice(len(candles) - len(features))
    adx, atr_rank, width_rank, natr = (features[:, column] for column in MEASURES)
    return Market(
        candles=candles,
        features=features,
        regime=regimes.classify_measures(adx, atr_rank, width_rank),
        atr=natr * candles.close,
    )


def row_features(
    market: Market, at: NDArray[np.int64], direction: NDArray[np.int8], patterns: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """(s, F) features of signals at rows ``at``, columns as ``ROW_FEATURE_NAMES``; for batch and live.

    Features whose sign means up or down are turned by the direction: over 0 speaks for the signal.
    """
    rows = np.empty((len(at), len(ROW_FEATURE_NAMES)), dtype=np.float32)
    market_part, signal_part = rows[:, : len(FEATURES)], rows[:, len(FEATURES) :]
    np.multiply(market.features[at], np.where(ORIENTED, direction[:, None], 1), out=market_part)
    signal_part[:, 0] = direction
    signal_part[:, 1] = np.bitwise_count(patterns)
    signal_part[:, 2:] = market.regime[at, None] == np.arange(len(REGIMES))
    return rows


def label_signals(
    market: Market, *, symbol: str, config: LabelConfig, traded: Candles | None = None
) -> SignalRows:
    """One row for each pattern signal that has a regime, with its outcome as far as it is known.

    Args:
        market: of the cleaned candles, which signals and features are read from.
        symbol: whose.
        config: barriers and costs.
        traded: the candles before the noise filter, on which outcomes are walked: a crash that looks like
            noise stopped the trade all the same. By default the market's own.

    Raises:
        KeyRejected: ``symbol`` cannot name one.
    """
    candles = market.candles
    found = detect(candles)
    kept = market.regime[found.at] >= 0
    at, direction, patterns = found.at[kept], found.direction[kept], found.patterns[kept]
    close_time, entry, atr = candles.close_time[at], candles.close[at], market.atr[at]
    traded = candles if traded is None else traded
    traded_at = np.searchsorted(traded.open_time, candles.open_time[at])
    outcome = triple_barrier(traded, traded_at, direction, atr, config)
    return SignalRows(
        symbols=(check_symbol(symbol),),
        feature_names=ROW_FEATURE_NAMES,
        symbol_code=np.zeros(len(at), dtype=np.int16),
        close_time=close_time,
        direction=direction,
        regime=market.regime[at],
        patterns=patterns,
        pattern_confidence=pattern_confidence(
            close_time=close_time,
            direction=direction,
            patterns=patterns,
            label=outcome.label,
            horizon=config.horizon_bars * interval_duration(candles.interval),
        ),
        features=row_features(market, at, direction, patterns),
        entry_price=entry,
        atr=atr,
        label=outcome.label,
        label_end=outcome.label_end,
        gross_return_atr=outcome.gross_return_atr,
        cost_atr=round_trip_cost_atr(entry, atr, config),
        uniqueness=uniqueness(traded, traded_at, outcome.label_end),
    )


def build_rows(candles: Candles, *, symbol: str, config: LabelConfig) -> SignalRows:
    """``read_market`` and ``label_signals`` of one symbol's (cleaned) candles."""
    return label_signals(read_market(candles), symbol=symbol, config=config)
