"""What a worker makes of a live window is what training made of the whole history, on thousands of moments.

Windows are cut from the raw candles and cleaned by themselves, as a worker does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from feeds import samples
from ml import features, regimes
from ml.candles import Candles, resample
from ml.dataset import ROW_FEATURE_NAMES, Market, read_market, row_features
from ml.features import FEATURE_NAMES, FEATURES, WINDOW, market_features
from ml.noise import clean
from ml.patterns import PATTERN_WINDOW, FoundPatterns, detect

pytestmark = pytest.mark.inference

Floats = NDArray[np.float64]

MOMENTS = 800
"""Of each series: 3,200 in all."""
TOLERANCE = 1e-9
"""Of a feature's scale: of the value, or of the feature's spread where that is larger."""


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """A series as training read it, and moments at which a worker is asked."""

    raw: Candles
    batch: Market
    moments: NDArray[np.int64]
    """Rows of the cleaned candles. A candle that the noise filter drops is asked of nobody."""
    spread: Floats

    def window(self, row: int) -> Candles:
        """The candles that a worker has at a moment."""
        end = int(np.searchsorted(self.raw.open_time, self.batch.candles.open_time[row])) + 1
        return clean(self.raw.slice(end - WINDOW, end)).candles

    def error(self, found: Floats, row: int) -> Floats:
        """Differences of the rows up to ``row``, in the features' scale; infinite where only one is NaN."""
        expected = self.batch.features[row - len(found) + 1 : row + 1]
        error = np.abs(found - expected) / np.fmax(np.abs(expected), self.spread)
        error[np.isnan(found) & np.isnan(expected)] = 0
        return np.nan_to_num(error, nan=np.inf)


@pytest.fixture(scope="module", params=[f"{s} {i}" for s in samples.SYMBOLS for i in ("30m", "1h")])
def history(request: pytest.FixtureRequest) -> History:
    symbol, interval = request.param.split()
    raw = resample(samples.load(symbol, now=datetime(2020, 1, 1, tzinfo=UTC)), interval)
    batch = read_market(clean(raw).candles)
    moments = np.random.default_rng(31).integers(WINDOW, len(batch.candles), MOMENTS)
    return History(raw, batch, moments, spread=np.nanstd(batch.features, axis=0))


@pytest.mark.parametrize("last", [1, 64])
def test_a_live_window_gives_what_training_saw(history: History, last: int) -> None:
    draw = np.random.default_rng(last)
    step = TOLERANCE * np.concatenate([history.spread, np.zeros(len(ROW_FEATURE_NAMES) - len(FEATURES))])
    unequal = 0
    for row in history.moments.tolist():
        live = read_market(history.window(row), last)
        known = np.arange(row - last + 1, row + 1)
        assert np.array_equal(live.candles.open_time, history.batch.candles.open_time[known])
        assert np.array_equal(live.regime, history.batch.regime[known])
        assert np.abs(live.atr / history.batch.atr[known] - 1).max() < TOLERANCE
        error = history.error(live.features, row)
        assert error.max() < TOLERANCE, (row, FEATURE_NAMES[int(error.max(axis=0).argmax())])

        direction = draw.choice(np.array([-1, 1], dtype=np.int8), last)
        patterns = draw.integers(1, 2**61, last, dtype=np.uint64)
        found = row_features(live, np.arange(last), direction, patterns)
        expected = row_features(history.batch, known, direction, patterns)
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        apart = np.nan_to_num(np.abs(found - expected))
        # One step of float32; or, of what is nearly 0 (-4e-15: a close in the middle), rounding in either.
        assert (apart <= np.fmax(np.spacing(np.abs(expected)), step)).all()
        unequal += int((apart > 0).sum())
    assert unequal < 1e-4 * MOMENTS * last * len(FEATURES)


def test_a_window_too_short_for_its_feature_is_found_out(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: half of a stated window breaks every feature that has one."""
    halved = tuple(replace(feature, window=feature.window // 2) for feature in FEATURES)
    monkeypatch.setattr(features, "FEATURES", halved)
    monkeypatch.setattr(features, "WINDOWS", {feature.window for feature in halved})
    monkeypatch.setattr(regimes, "ADX_LOOKBACK", regimes.ADX_LOOKBACK // 2)
    error = np.max(
        [
            history.error(market_features(history.window(row), 1), row)[0]
            for row in history.moments[:40].tolist()
        ],
        axis=0,
    )
    broken = {name for name, worst in zip(FEATURE_NAMES, error, strict=True) if worst >= TOLERANCE}
    assert broken == {feature.name for feature in FEATURES if feature.window} | {"adx_14"}


def test_the_patterns_of_a_candle_are_found_on_its_short_tail(history: History) -> None:
    candles = history.batch.candles
    whole = detect(candles)
    for tail in (PATTERN_WINDOW, PATTERN_WINDOW // 2):
        assert all(_same_patterns(candles, whole, row, tail) for row in history.moments[:300].tolist())
    # TA-Lib's three methods look back on 14 candles: without the oldest of them they are not looked for.
    assert not all(_same_patterns(candles, whole, row, 12) for row in history.moments.tolist())


def _same_patterns(candles: Candles, whole: FoundPatterns, row: int, tail: int) -> bool:
    part = detect(candles.slice(row - tail + 1, row + 1))
    first, end = np.searchsorted(whole.at, [row, row + 1])
    last = part.at == tail - 1
    return bool(
        np.array_equal(part.direction[last], whole.direction[first:end])
        and np.array_equal(part.patterns[last], whole.patterns[first:end])
    )
