"""Candlestick patterns: TA-Lib's own answers, one signal per candle and direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import talib
from hypothesis import given
from hypothesis import strategies as st

from ml.candles import PRICES, Candles
from ml.errors import InputRejected
from ml.patterns import PATTERN_NAMES, detect, pattern_mask, pattern_names
from tests.real_candles import real_candles

pytestmark = pytest.mark.training


def test_all_61_patterns_of_talib_are_named_once() -> None:
    assert len(PATTERN_NAMES) == len(set(PATTERN_NAMES)) == 61
    assert set(PATTERN_NAMES) == set(talib.get_function_groups()["Pattern Recognition"])  # type: ignore[no-untyped-call]


def test_signals_of_real_candles_are_talibs_own() -> None:
    candles = real_candles()
    prices = [getattr(candles, name) for name in PRICES]
    expected: dict[tuple[int, int], set[str]] = {}
    for name in PATTERN_NAMES:
        strength = getattr(talib, name)(*prices)
        for row in np.flatnonzero(strength):
            expected.setdefault((int(row), int(np.sign(strength[row]))), set()).add(name)
    found = detect(candles)
    signals = {
        (int(at), int(side)): set(pattern_names(int(mask)))
        for at, side, mask in zip(found.at, found.direction, found.patterns, strict=True)
    }
    # In decimals rounding breaks a tie between a body and an average of bodies; in ticks nothing does.
    different = {key for key in expected.keys() | signals.keys() if expected.get(key) != signals.get(key)}
    assert len(different) < 0.001 * len(expected)
    assert len(signals) == len(found) > len(candles) / 2


def test_signals_come_in_candle_order_one_for_each_direction() -> None:
    found = detect(real_candles())
    order = found.at * 2 + (found.direction > 0)
    assert (np.diff(order) > 0).all()
    assert (found.patterns > 0).all()
    assert set(found.direction.tolist()) == {-1, 1}


def test_a_bullish_engulfing_is_found_at_the_candle_that_completes_it() -> None:
    rows = [(10.0, 10.3, 9.7, 10.1)] * 15 + [(10.0, 10.1, 9.4, 9.5), (9.4, 10.6, 9.3, 10.5)]
    times = np.datetime64("2019-01-01", "us") + np.arange(len(rows)) * np.timedelta64(1, "h")
    open_, high, low, close = np.array(rows).T
    found = detect(Candles("1h", times, open_, high, low, close, np.ones(len(rows))))
    last = found.at == len(rows) - 1
    assert found.direction[last].tolist() == [1]
    assert "CDLENGULFING" in pattern_names(int(found.patterns[last][0]))


@pytest.mark.parametrize("factor", [0.01, 1000.0])
def test_the_currency_changes_no_pattern(factor: float) -> None:
    candles = real_candles().slice(0, 4000)
    other = replace(candles, **{name: getattr(candles, name) * factor for name in PRICES})
    for field in ("at", "direction", "patterns"):
        assert getattr(detect(other), field).tolist() == getattr(detect(candles), field).tolist()


@given(st.sets(st.sampled_from(PATTERN_NAMES)))
def test_names_go_into_a_mask_and_come_out_in_order(names: set[str]) -> None:
    assert pattern_names(pattern_mask(names)) == tuple(sorted(names))


def test_an_unknown_pattern_is_rejected() -> None:
    with pytest.raises(InputRejected, match="CDLNONSENSE"):
        pattern_mask(["CDLDOJI", "CDLNONSENSE"])


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_candles_have_no_signal(n: int) -> None:
    assert len(detect(real_candles().slice(0, n))) == 0
