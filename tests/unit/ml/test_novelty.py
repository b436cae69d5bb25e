"""Novelty: what markets make is ordinary, what nobody learned from is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.candles import Candles
from ml.config import LabelConfig, SplitConfig
from ml.dataset import ROW_FEATURE_NAMES, build_rows, label_signals, read_market
from ml.noise import clean
from ml.novelty import FAR, RIDGE, FeatureRanges, make_ranges
from ml.rows import SignalRows
from ml.splits import split, split_times
from tests.real_candles import real_candles

pytestmark = pytest.mark.inference

Features = NDArray[np.float32]
LIMIT = 0.2
"""The default of the setting max_out_of_distribution."""
EQUAL = (1 / len(ROW_FEATURE_NAMES),) * len(ROW_FEATURE_NAMES)


@pytest.fixture(scope="module")
def bitcoin() -> SignalRows:
    return build_rows(clean(real_candles()).candles, symbol="BTCUSDT", config=LabelConfig())


@pytest.fixture(scope="module")
def learned(bitcoin: SignalRows) -> Features:
    return bitcoin.features[_parts(bitcoin)[0]]


@pytest.fixture(scope="module")
def later(bitcoin: SignalRows) -> Features:
    return bitcoin.features[_parts(bitcoin)[1]]


@pytest.fixture(scope="module")
def ranges(learned: Features) -> FeatureRanges:
    return make_ranges(learned, EQUAL)


def _parts(rows: SignalRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that a model would have learned from, and the later ones that it would be judged on."""
    parts = split(rows, split_times(rows, SplitConfig()), embargo=timedelta(hours=12))
    return np.concatenate([parts.fit, parts.early_stop, parts.calibrate]), parts.test


def test_the_score_is_the_shrunk_mahalanobis_distance_over_that_of_five_deviations() -> None:
    draw = np.random.default_rng(0)
    mixed = draw.normal(size=(4000, 4)) @ draw.normal(size=(4, 4)) + [3, -1, 0, 100]
    features = mixed.astype(np.float32)

    found = make_ranges(features, (0.25,) * 4).score(features[:50])

    values = features.astype(np.float64)
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    shrunk = (1 - RIDGE) * np.corrcoef(values.T) + RIDGE * np.eye(4)
    squared = np.einsum("ij,jk,ik->i", standard, np.linalg.inv(shrunk), standard)[:50]
    assert found == pytest.approx(squared / (FAR**2 * 4), rel=2e-3)
    # An ordinary row is one deviation out in every direction, but for what the ridge takes off.
    assert 0.5 / FAR**2 < found.mean() < 1 / FAR**2


def test_hardly_any_later_signal_of_a_real_market_is_over_the_limit(
    ranges: FeatureRanges, later: Features
) -> None:
    scores = ranges.score(later)

    assert len(scores) > 4000
    assert 0 < (scores > LIMIT).mean() < 0.005
    assert 0.01 < np.median(scores) < 0.06


def test_the_fallback_is_not_surprised_by_its_own_regimes_nor_a_regime_by_its_own_rows(
    bitcoin: SignalRows,
) -> None:
    learned, later = (bitcoin.take(part) for part in _parts(bitcoin))
    for regime in range(4):
        own = make_ranges(learned.features[learned.regime == regime], EQUAL)
        assert (own.score(later.features[later.regime == regime]) > LIMIT).mean() < 0.01
        # A regime's flags never vary in its own rows; another regime's row is not of this model.
        assert (own.score(later.features[later.regime != regime]) == 1).all()


@pytest.mark.parametrize("shift", [5.0, -5.0])
def test_three_features_five_deviations_away_are_over_the_limit_in_every_row(
    ranges: FeatureRanges, learned: Features, later: Features, shift: float
) -> None:
    shifted = later.copy()
    for name in ("move_6", "volume_surge", "bollinger_20"):
        column = ROW_FEATURE_NAMES.index(name)
        shifted[:, column] += np.float32(shift * learned[:, column].std())

    assert (ranges.score(shifted) > LIMIT).all()


@pytest.mark.parametrize("name", ["rsi_14", "stoch_k", "adx_14", "natr_14"])
def test_one_feature_on_another_scale_is_over_the_limit(
    ranges: FeatureRanges, later: Features, name: str
) -> None:
    """As a caller sends it that left an indicator in percent, which the features have as a share."""
    scaled = later.copy()
    scaled[:, ROW_FEATURE_NAMES.index(name)] *= 100

    assert (ranges.score(scaled) > LIMIT).mean() > 0.9


def test_a_candle_with_ten_times_the_price_is_over_the_limit(ranges: FeatureRanges) -> None:
    """Seen by the score even if no noise filter looked first."""
    candles = clean(real_candles()).candles
    last = candles.slice(len(candles) - 3000, len(candles))
    at = np.arange(len(last)) == len(last) - 200
    tenfold = {
        name: np.where(at, 10 * getattr(last, name), getattr(last, name))
        for name in ("open", "high", "low", "close")
    }
    rows = label_signals(read_market(replace(last, **tenfold)), symbol="BTCUSDT", config=LabelConfig())
    hours = (rows.close_time - _close(last, at)) / np.timedelta64(1, "h")

    scores = ranges.score(rows.features)

    near = (hours >= 0) & (hours < 12)
    assert near.sum() > 2
    assert (scores[near] > LIMIT).all()
    assert (scores[hours < 0] > LIMIT).mean() < 0.01


def _close(candles: Candles, at: NDArray[np.bool_]) -> np.datetime64:
    return np.datetime64(candles.close_time[at][0])


def test_what_is_missing_counts_by_importance_unless_it_was_missing_before() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(2000, 3)).astype(np.float32)
    features[::2, 2] = np.nan
    ranges = make_ranges(features, (0.5, 0.3, 0.2))
    centre = np.array([ranges.centre] * 4, np.float32)
    for row, column in ((1, 0), (2, 1), (3, 2)):
        centre[row, column] = np.nan

    found = ranges.score(centre)

    assert found == pytest.approx([0, 0.5, 0.3, 0.2 / 2], abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_features_that_are_no_numbers_score_1(ranges: FeatureRanges, value: float) -> None:
    features = np.full((2, len(ROW_FEATURE_NAMES)), value, np.float32)

    assert ranges.score(features) == pytest.approx([1.0, 1.0])


def test_a_row_scores_the_same_alone_as_in_a_batch(ranges: FeatureRanges, later: Features) -> None:
    features = later[:200].copy()
    features[::9, 3] = np.nan

    batch = ranges.score(features)

    assert np.array_equal(batch, np.concatenate([ranges.score(features[i : i + 1]) for i in range(200)]))
    assert ranges.score(features[:0]).shape == (0,)


def test_ranges_are_the_same_after_a_round_trip_and_refuse_what_does_not_fit(ranges: FeatureRanges) -> None:
    value = ranges.to_json()

    assert FeatureRanges.from_json(value) == ranges
    shorter: list[Callable[[], object]] = [
        lambda: FeatureRanges.from_json(value | {"spread": value["spread"][1:]}),
        lambda: FeatureRanges.from_json(value | {"correlation": value["correlation"][:-4]}),
        lambda: FeatureRanges.from_json(value | {"correlation": "no base64"}),
    ]
    for make in shorter:
        with pytest.raises(ValueError, match=r"ranges of 53 features|base64"):
            make()
