"""Probes on real candles: a model that answers passes; one that leaks, or was damaged, is caught by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ml.artifact import Model, Predictor, load_booster, to_bytes
from ml.candles import Candles
from ml.config import TrainingConfig
from ml.dataset import ROW_FEATURE_NAMES, Market, label_signals, read_market, row_features
from ml.features import FEATURE_NAMES, WINDOW
from ml.keys import ModelKey
from ml.noise import clean
from ml.patterns import detect
from ml.probes import LOOKED_AT, answers, no_look_ahead
from ml.rows import SignalRows
from ml.training import Challenger, FittedBooster, fit_booster, fit_key
from tests.real_candles import real_candles

pytestmark = pytest.mark.drift

CONFIG = TrainingConfig.from_mapping(
    {
        "bootstrap_samples": 100,
        "fit": {"n_estimators": 30, "threads": 1},
        "drift": {"null_months": 15},
    }
)
KEY = ModelKey("BTCUSDT", "1h", "trending")


def rows_of(raw: Candles) -> SignalRows:
    return label_signals(read_market(clean(raw).candles), symbol="BTCUSDT", config=CONFIG.labels, traded=raw)


@pytest.fixture(scope="module")
def rows() -> SignalRows:
    return rows_of(real_candles())


@pytest.fixture(scope="module")
def fitted(rows: SignalRows) -> FittedBooster:
    return fit_booster(rows, CONFIG, interval="1h")


@pytest.fixture(scope="module")
def challenger(rows: SignalRows, fitted: FittedBooster) -> Challenger:
    return fit_key(KEY, rows, fitted, CONFIG, as_of=datetime(2019, 10, 1, tzinfo=UTC))


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_model_passes_both(challenger: Challenger, fitted: FittedBooster, seed: int) -> None:
    for found in (
        answers(challenger.predictor, fitted.ubjson, challenger.test, seed=seed),
        no_look_ahead(challenger.test, real_candles(), seed=seed),
    ):
        assert found.passed, found.detail
        assert (found.value, found.limit) == (0.0, 0.0)


def test_every_row_that_has_a_window_comes_out_the_same_with_the_candles_of_a_worker(
    challenger: Challenger,
) -> None:
    """The noise filter judges a window by itself; 20 draws of 12 find no row where that shows."""
    for seed in range(100, 120):
        assert no_look_ahead(challenger.test, real_candles(), seed=seed).passed


@pytest.mark.parametrize("feature", ["natr_14", "rsi_14", "regime_trending"])
def test_a_feature_from_the_next_candle_is_named_with_its_row(rows: SignalRows, feature: str) -> None:
    """What a shift by one the wrong way round does: the model is judged on what nobody knows."""
    at = ROW_FEATURE_NAMES.index(feature)
    leaking = rows.features.copy()
    leaking[:-1, at] = rows.features[1:, at]
    leaking[-1, at] = 0

    found = no_look_ahead(replace(rows, features=leaking).take(slice_of_tests(rows)), real_candles(), seed=3)

    assert not found.passed
    assert f": {feature} is " in found.detail
    assert "signal of 2019-" in found.detail
    assert found.data["rows"] == LOOKED_AT


def slice_of_tests(rows: SignalRows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(rows.close_time > np.datetime64("2019-04-01"))


def test_a_market_that_looks_one_candle_ahead_is_caught(rows: SignalRows) -> None:
    """Features, regime and patterns, all as of the next candle: no window gives them."""
    raw = real_candles()
    market = read_market(clean(raw).candles)
    found = detect(market.candles)
    kept = market.regime[found.at] >= 0
    at = found.at[kept]
    ahead = row_features(
        market,
        np.minimum(at + 1, len(market.candles) - 1),
        found.direction[kept],
        found.patterns[kept],
    )
    assert ahead.shape == rows.features.shape

    probe = no_look_ahead(replace(rows, features=ahead).take(slice_of_tests(rows)), raw, seed=3)

    assert not probe.passed
    assert probe.value == 2 * LOOKED_AT


def test_the_smallest_leak_into_a_row_is_seen(challenger: Challenger) -> None:
    """Two steps of float32 in one feature of every row."""
    at = ROW_FEATURE_NAMES.index(FEATURE_NAMES[0])
    moved = challenger.test.features.copy()
    moved[:, at] += 2 * np.abs(np.spacing(moved[:, at])) + np.float32(1e-6)

    found = no_look_ahead(replace(challenger.test, features=moved), real_candles(), seed=3)

    assert not found.passed
    assert FEATURE_NAMES[0] in found.detail


def test_code_that_reads_later_candles_where_it_has_them_is_caught(
    challenger: Challenger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On candles up to a signal it has nothing to read: only what comes after shows it."""

    def reads_on(candles: Candles, last: int | None = None) -> Market:
        market = read_market(candles, last)
        return replace(market, features=np.concatenate([market.features[1:], market.features[-1:]]))

    monkeypatch.setattr("ml.sightings.read_market", reads_on)

    found = no_look_ahead(challenger.test, real_candles(), seed=3)

    assert found.value == LOOKED_AT
    assert found.detail.endswith("with other candles after it")


@pytest.mark.parametrize("change", ["regime", "patterns", "entry_price", "atr"])
def test_what_is_not_a_feature_is_held_against_the_row_too(challenger: Challenger, change: str) -> None:
    test = challenger.test
    changed = {
        "regime": {"regime": np.full_like(test.regime, 3)},
        "patterns": {"patterns": test.patterns ^ np.uint64(1 << 60)},
        "entry_price": {"entry_price": test.entry_price * 1.00001},
        "atr": {"atr": test.atr * 1.00001},
    }[change]

    found = no_look_ahead(replace(test, **changed), real_candles(), seed=3)  # type: ignore[arg-type]

    assert not found.passed


def test_rows_without_a_window_of_candles_fail_for_want_of_data(challenger: Challenger) -> None:
    raw = real_candles()
    first = int(np.searchsorted(raw.close_time, challenger.test.close_time[0]))
    short = raw.slice(first - 10, first - 11 + WINDOW)

    found = no_look_ahead(challenger.test.take(np.arange(5)), short, seed=3)

    assert (found.passed, found.value) == (False, None)
    assert "without data the gate fails" in found.detail


def test_trees_that_are_not_the_judged_ones_do_not_pass(
    challenger: Challenger, rows: SignalRows, fitted: FittedBooster
) -> None:
    other = fit_booster(
        rows,
        CONFIG.model_copy(update={"fit": CONFIG.fit.model_copy(update={"seed": 8})}),
        interval="1h",
    )

    found = answers(challenger.predictor, other.ubjson, challenger.test, seed=1)

    assert not found.passed
    assert found.detail.startswith("the stored model does not load: ")
    judged_by_others = Predictor(challenger.model, load_booster(other.ubjson))
    differing = answers(judged_by_others, fitted.ubjson, challenger.test, seed=1)
    assert not differing.passed
    assert "was judged, to the " in differing.detail


def test_confidences_that_are_no_probabilities_do_not_pass(
    challenger: Challenger, fitted: FittedBooster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (np.nan, 0.0, 1.0, np.inf):
        monkeypatch.setattr(Predictor, "confidence", lambda _, rows, value=value: np.full(len(rows), value))
        assert not answers(challenger.predictor, fitted.ubjson, challenger.test, seed=1).passed


def test_a_threshold_that_is_stored_as_another_does_not_pass(
    challenger: Challenger, fitted: FittedBooster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same confidences, but not the same answers."""
    median = float(np.median(challenger.predictor.confidence(challenger.test.features)))

    def stored(model: Model) -> bytes:
        return to_bytes(replace(model, threshold=replace(model.threshold, value=median)))

    monkeypatch.setattr("ml.probes.to_bytes", stored)

    assert not answers(challenger.predictor, fitted.ubjson, challenger.test, seed=1).passed


def test_no_row_fails_for_want_of_data(challenger: Challenger, fitted: FittedBooster) -> None:
    nothing = challenger.test.take(np.arange(0))

    for found in (
        answers(challenger.predictor, fitted.ubjson, nothing, seed=1),
        no_look_ahead(nothing, real_candles(), seed=1),
    ):
        assert (found.passed, found.value) == (False, None)
