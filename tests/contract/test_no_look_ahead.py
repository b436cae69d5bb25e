"""No feature sees the future, no label is read before its end: cut real candles anywhere, the past stays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ml.config import LabelConfig
from ml.dataset import Market, build_rows, read_market
from ml.noise import clean
from ml.patterns import FoundPatterns, detect
from ml.rows import SignalRows
from tests.real_candles import real_candles

pytestmark = pytest.mark.training

CANDLES = 6000
CUTS = sorted(np.random.default_rng(2019).integers(1, CANDLES, 300).tolist())
TABLE_CUTS = CUTS[20::14]
"""Whole tables are dearer to build, and nearly empty while the first regimes are untold."""
HORIZON = LabelConfig().horizon_bars * np.timedelta64(1, "h")


@pytest.fixture(scope="module")
def market() -> Market:
    return read_market(clean(real_candles().slice(0, CANDLES)).candles)


@pytest.fixture(scope="module")
def found(market: Market) -> FoundPatterns:
    return detect(market.candles)


@pytest.fixture(scope="module")
def table(market: Market) -> SignalRows:
    return build_rows(market.candles, symbol="BTCUSDT", config=LabelConfig())


def test_what_is_dropped_as_noise_stays_dropped_for_the_same_reason_at_every_cut() -> None:
    candles = real_candles("ETHUSDT")
    whole = clean(candles)
    for cut in CUTS:
        part = clean(candles.slice(0, cut))
        assert part.dropped == whole.dropped[: len(part.dropped)]
        assert_array_equal(part.candles.open_time, whole.candles.open_time[: len(part.candles)])


def test_features_and_regimes_are_the_same_bits_at_every_cut(market: Market) -> None:
    for cut in CUTS:
        part = read_market(market.candles.slice(0, cut))
        assert_array_equal(part.features, market.features[:cut])
        assert_array_equal(part.regime, market.regime[:cut])


def test_patterns_are_the_same_at_every_cut(market: Market, found: FoundPatterns) -> None:
    for cut in CUTS:
        part = detect(market.candles.slice(0, cut))
        size = int(np.searchsorted(found.at, cut))
        assert_array_equal(part.at, found.at[:size])
        assert_array_equal(part.direction, found.direction[:size])
        assert_array_equal(part.patterns, found.patterns[:size])


@pytest.mark.parametrize("cut", TABLE_CUTS)
def test_rows_know_at_a_cut_what_they_know_later_and_outcomes_wait_for_their_horizon(
    cut: int, market: Market, table: SignalRows
) -> None:
    candles = market.candles.slice(0, cut)
    part = build_rows(candles, symbol="BTCUSDT", config=LabelConfig())
    later = table.take(np.arange(len(part)))
    now = candles.close_time[-1]
    for name in ("close_time", "direction", "regime", "patterns", "pattern_confidence", "features", "atr"):
        assert_array_equal(getattr(part, name), getattr(later, name), err_msg=name)
    known = part.labelled
    assert (part.label_end[known] <= now).all()
    assert_array_equal(known, later.labelled & (later.close_time + HORIZON <= now))
    for name in ("label", "label_end", "gross_return_atr"):
        assert_array_equal(getattr(part, name)[known], getattr(later, name)[known], err_msg=name)
